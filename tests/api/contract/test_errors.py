"""Sections 1 and 7: authentication, the envelope everywhere, and what the server lets nobody do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.support import MODEL, PREFIXES, Live, S, ScriptRunner, live, scripted_model
from tinyllm.api.house.settings import Settings
from tinyllm.tokenizer import Tokenizer

JSON = {"content-type": "application/json"}


def assert_envelope(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    error: dict[str, Any] = response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.fixture(scope="module")
def locked(tokenizer: Tokenizer) -> Iterator[Live]:
    """A server with keys, that is strict, and takes no body beyond 4 KiB."""
    runner = ScriptRunner(tokenizer)
    options = Settings(
        port=0, access_log="off", api_key=("key-one", "schlüssel"), strict=True, max_body=4096,
        max_n=2,
    )  # fmt: skip
    with live(options, lambda: [scripted_model(tokenizer, runner)], runner=runner) as server:
        yield server


# -- 401 -------------------------------------------------------------------------------------

GUARDED = ["/metrics", "/openapi.json", "/nowhere"] + [
    prefix + path for prefix in PREFIXES for path in ("/models", "/models/x", "/sessions/x")
]


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer wrong", "Basic key-one", "key-one", "Bearer key-on"],
)
def test_401_on_every_route_but_health(locked: Live, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    response = locked.http.get(path, headers=headers)
    error = assert_envelope(response, 401)
    assert error["type"] == "authentication_error"
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert locked.http.get("/health").status_code == 200


@pytest.mark.parametrize("key", ["key-one", "schlüssel"])
def test_a_known_key_passes(locked: Live, key: str) -> None:
    headers = [(b"Authorization", f"Bearer {key}".encode())]
    assert locked.http.get("/v1/models", headers=headers).status_code == 200


def test_sessions_and_replays_belong_to_their_key(locked: Live) -> None:
    one = {"Authorization": "Bearer key-one"}
    other = [(b"Authorization", "Bearer schlüssel".encode())]
    made = locked.chat("/v1", {}, headers={**one, "X-Session-ID": "mine"}).json()
    for path in ("/v1/sessions/mine", f"/v1/completions/{made['id']}/replay"):
        assert_envelope(locked.http.get(path, headers=other), 404)
        assert locked.http.get(path, headers=one).status_code == 200


# -- the envelope ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/", "/v1/nothing", f"{S}/nothing"])
def test_404_has_the_envelope(scripted: Live, path: str) -> None:
    assert_envelope(scripted.http.get(path), 404)
    assert_envelope(scripted.http.post(path, json={}), 404)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_405_has_the_envelope_and_allow(scripted: Live, prefix: str) -> None:
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        response = scripted.http.request(method, f"{prefix}/chat/completions")
        assert_envelope(response, 405)
        assert response.headers["Allow"] == "POST"
    assert_envelope(scripted.http.post(f"{prefix}/models", json={}), 405)


def test_request_id_is_taken_over_or_made(scripted: Live) -> None:
    response = scripted.http.get("/health", headers={"X-Request-ID": "abc-1"})
    assert response.headers["x-request-id"] == "abc-1"
    response = scripted.http.get("/health", headers={"X-Request-ID": "no spaces, please"})
    assert len(response.headers["x-request-id"]) == 32


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"]
)
def test_415_for_another_content_type(scripted: Live, prefix: str, kind: str) -> None:
    for path in ("/chat/completions", "/tokenize", "/detokenize"):
        response = scripted.http.post(prefix + path, content="{}", headers={"content-type": kind})
        assert_envelope(response, 415)


@pytest.mark.parametrize("announced", [True, False])
def test_413_for_a_body_too_large(locked: Live, announced: bool) -> None:
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x" * 5000}]})
    content: Any = body if announced else iter([body.encode()])  # with a length, or chunked
    headers = {**JSON, "Authorization": "Bearer key-one"}
    response = locked.http.post("/v1/chat/completions", content=content, headers=headers)
    assert_envelope(response, 413)


def test_strict_refuses_unknown_parameters(locked: Live) -> None:
    headers = {"Authorization": "Bearer key-one"}
    error = assert_envelope(locked.chat("/v1", {"colour": 1}, headers=headers), 400)
    assert error["param"] == "colour"


def test_max_n_is_the_servers(locked: Live) -> None:
    headers = {"Authorization": "Bearer key-one"}
    assert locked.chat("/v1", {"n": 2}, headers=headers).status_code == 200
    assert assert_envelope(locked.chat("/v1", {"n": 3}, headers=headers), 400)["param"] == "n"


def test_422_detail_on_s_is_the_pages_family(scripted: Live) -> None:
    response = scripted.chat(S, {"temperature": 3})
    assert_envelope(response, 422)
    assert response.json()["detail"] == [
        {"loc": ["body", "temperature"], "msg": response.json()["error"]["message"],
         "type": "less_than_equal"}
    ]  # fmt: skip


# -- broken bodies ---------------------------------------------------------------------------

HOSTILE: list[tuple[str, bytes, str | None]] = [
    ("empty", b"", None),
    ("not json", b"{", None),
    ("list of members", b'["model", 1, "n", ]', None),
    ("open key", b'{"model": "m", "us', None),
    ("byte outside", b'{"model": "m"}\xff', None),
    ("nested key", b'{"user": {"model": 1, "n" 2}}', "user"),
    ("cut short", b'{"model": "x", "messages": [', "messages"),
    ("single quotes", b"{'model': 'x'}", None),
    ("nan", b'{"model": "m", "temperature": NaN}', "temperature"),
    ("infinity", b'{"model": "m", "top_p": -Infinity}', "top_p"),
    ("1e400", b'{"model": "m", "temperature": 1e400}', "temperature"),
    ("1e400 deep", b'{"model": "m", "metadata": {"a": [0, -1e999]}}', "metadata.a[1]"),
    ("huge integer", b'{"model": "m", "seed": ' + b"9" * 400 + b"}", "seed"),
    ("larger integer", b'{"model": "m", "seed": ' + b"9" * 5000 + b"}", "seed"),
    ("deep array", b'{"model": "m", "stop": ' + b"[" * 100_000, "stop"),
    ("deep closed array", b'{"stop": ' + b"[" * 500 + b"]" * 500 + b"}", "stop"),
    ("deep object", b'{"stop": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}", "stop"),
    ("lone surrogate", b'{"model": "\\ud800"}', "model"),
    ("lone surrogate deep", b'{"messages": [{"role": "user", "content": "a\\udc00"}]}',
     "messages[0].content"),
    ("surrogate key", b'{"metadata": {"\\ud800": 1}}', "metadata"),
    ("invalid utf-8", b'{"model": "m", "user": "\xff"}', "user"),
    ("cesu surrogate", b'{"model": "m", "user": "\xed\xa0\x80"}', "user"),
    ("utf-16", '{"model": "m"}'.encode("utf-16"), None),
    ("byte order mark", b'\xef\xbb\xbf{"model": "m"}', None),
    ("control character", b'{"model": "a\x01b"}', "model"),
    ("trailing garbage", b'{"model": "m"} x', None),
]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES, ids=["S", "O"])
@pytest.mark.parametrize(("body", "param"), [h[1:] for h in HOSTILE], ids=[h[0] for h in HOSTILE])
def test_hostile_body_gets_the_envelope_with_the_field(
    scripted: Live, prefix: str, body: bytes, param: str | None
) -> None:
    response = scripted.http.post(f"{prefix}/chat/completions", content=body, headers=JSON)
    error = assert_envelope(response, 422 if prefix == S else 400)
    if param is not None:
        assert error["param"] == param


VALID: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Hi", "name": "a"}],
    "max_tokens": 1, "temperature": 0.5, "top_p": 0.5, "top_k": 1, "n": 1, "stream": False,
    "stop": ["x"], "seed": 1, "logprobs": True, "top_logprobs": 1, "presence_penalty": 0.1,
    "frequency_penalty": 0.1, "logit_bias": {"1": 1}, "tool_choice": "auto", "user": "u",
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "response_format": {"type": "text"}, "reasoning": {"enabled": False}, "metadata": {"a": "b"},
    "prompt_truncate_len": 100, "stream_options": {"include_usage": True},
    "parallel_tool_calls": True, "reasoning_effort": "none", "max_completion_tokens": 1,
}  # fmt: skip
WRONG = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | st.text(max_size=5)
    | st.sampled_from(["\ud800", "auto", "required", "", "\x00", "data:,", "https://"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["type", "function", "name", "text", "role", "content", "url", "$ref"]),
        inner, max_size=3,
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=120, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(prefix=st.sampled_from(PREFIXES), field=st.sampled_from(sorted(VALID)), value=WRONG)
def test_any_wrong_value_gets_an_answer_or_the_envelope_with_its_field(
    scripted: Live, prefix: str, field: str, value: Any
) -> None:
    body = json.dumps({**VALID, field: value})
    response = scripted.http.post(f"{prefix}/chat/completions", content=body, headers=JSON)
    if response.status_code == 200:
        return
    assert response.status_code in (400, 404, 422), response.text
    error = assert_envelope(response, response.status_code)
    related = {"top_logprobs": "logprobs", "logprobs": "top_logprobs", "tools": "tool_choice",
               "max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens",
               "reasoning_effort": "reasoning", "reasoning": "reasoning_effort"}  # fmt: skip
    named = str(error["param"])
    assert named.startswith((field, related.get(field, field))), (error, body)
    if field in ("max_tokens", "max_completion_tokens"):
        assert response.status_code != 404


@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(prefix=st.sampled_from(PREFIXES), body=st.binary(max_size=200))
def test_any_bytes_get_the_envelope(scripted: Live, prefix: str, body: bytes) -> None:
    response = scripted.http.post(f"{prefix}/chat/completions", content=body, headers=JSON)
    assert_envelope(response, 422 if prefix == S else 400)


LONG = "a" * 4000
SAYS_LONG: list[dict[str, Any]] = [
    {"model": LONG},
    {LONG: 1, "tools": LONG},
    {"logit_bias": {LONG: 1000}},
    {"logit_bias": {"9" * 11: 1}},
    {"chat_template_kwargs": {LONG: "x", "messages": LONG}},
    {"structured_outputs": {LONG: "x"}},
    {"response_format": {"type": LONG}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": LONG, "schema": {}}}},
    {"guided_json": {"type": LONG}},
    {"guided_json": {"type": "string", "pattern": f"(?={LONG})"}},
    {"guided_json": {"$ref": f"#/$defs/{LONG}"}},
    {"guided_json": {"type": "object", "required": [LONG], "additionalProperties": False}},
    {"tool_choice": LONG},
    {"messages": [{"role": LONG, "content": "Hi"}]},
    {"messages": [{"role": "user", "content": [{"type": LONG}]}]},
    {"messages": [{"role": "tool", "tool_call_id": LONG, "content": "Hi"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": LONG}]}]},
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("body", SAYS_LONG, ids=lambda body: "-".join(body)[:24])
def test_an_error_quotes_few_of_a_callers_words(
    scripted: Live, prefix: str, body: dict[str, Any]
) -> None:
    response = scripted.chat(prefix, body)
    assert_envelope(response, response.status_code)
    assert len(response.content) < 2500


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (f"models/{LONG}", None),
        (f"sessions/{LONG}", None),
        (f"responses/{LONG}", None),
        (f"completions/{LONG}/replay", None),
        ("responses", {"previous_response_id": LONG, "input": "Hi"}),
        ("responses", {"input": [{"type": LONG}]}),
        ("responses", {"input": [{"type": "item_reference", "id": LONG}]}),
        ("responses", {"input": "Hi", "tools": [{"type": LONG}]}),
        ("responses", {"input": "Hi", "tool_choice": {"type": LONG}}),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_an_error_quotes_few_words_on_every_route(
    scripted: Live, path: str, body: dict[str, Any] | None
) -> None:
    for prefix in PREFIXES:
        address = f"{prefix}/{path}"
        got = (
            scripted.http.get(address)
            if body is None
            else scripted.post(address, {"model": MODEL, **body})
        )
        error = assert_envelope(got, got.status_code)
        assert got.status_code >= 400 and "aaaa" * 100 not in str(error)


@pytest.mark.parametrize("path", ["{}//models", "{}/models/", "/{}/models//", "{}///models/"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_base_url_may_end_in_a_slash(scripted: Live, prefix: str, path: str) -> None:
    address = scripted.url + path.format(prefix)
    assert scripted.http.get(address).json()["object"] == "list"


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions/chat/completions"])
def test_a_wrong_base_url_is_told_the_right_ones(scripted: Live, path: str) -> None:
    error = assert_envelope(scripted.post(path, {"model": MODEL}), 404)
    assert all(prefix in error["message"] for prefix in PREFIXES)
