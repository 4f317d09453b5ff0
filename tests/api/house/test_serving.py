"""Section 5 over real sockets: waiting, going away, slow peers, faults beside healthy clients."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.support import MODEL, PREFIXES, Live, ScriptRunner, events_of, live, scripted_model
from tinyllm.api.house.clocks import Clocks
from tinyllm.api.house.server import TimedProtocol
from tinyllm.api.house.settings import Settings
from tinyllm.api.limits import COSTLY_READ
from tinyllm.kernels.being_compiled import compiling
from tinyllm.tokenizer import Tokenizer


@pytest.fixture
def slow(tokenizer: Tokenizer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Live]:
    """A server whose model takes 10 ms a step, with room for one and a queue of one."""
    timeout = getattr(request, "param", 30.0)
    runner = ScriptRunner(tokenizer, "word " * 1500)
    runner.before = lambda segments: time.sleep(0.01)
    options = Settings(
        port=0, access_log=str(tmp_path / "access.log"), max_batch=1, max_n=1, max_queue=1,
        request_timeout=timeout,
    )  # fmt: skip
    clocks = Clocks(head=0.4, body=0.4, unread=0.5, idle=1, silence=0.1)
    engine = {"max_batch": 1, "max_queue": 1, "prefill_chunk": 16}
    models = lambda: [scripted_model(tokenizer, runner, engine=engine)]  # noqa: E731
    with live(options, models, runner=runner, clocks=clocks) as server:
        yield server


def raw(server: Live, data: bytes = b"") -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)), timeout=10)
    sock.sendall(data)
    return sock


def request_bytes(body: dict[str, Any], path: str = "/v1/chat/completions") -> bytes:
    data = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], **body})
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n{data}".encode()


def until(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it didn't come to pass"
        time.sleep(0.005)


def running(server: Live) -> int:
    stats = server.service.models[0].engine.stats()
    return int(stats.running + stats.queue_length)


# -- going away ------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [{"stream": True}, {}], ids=["streamed", "whole"])
def test_a_client_that_goes_away_frees_its_slot(slow: Live, body: dict[str, Any]) -> None:
    sock = raw(slow, request_bytes(body))
    until(lambda: running(slow) == 1)
    sock.close()
    until(lambda: running(slow) == 0)


def test_a_client_that_goes_away_in_prefill_frees_its_slot(slow: Live) -> None:
    messages = [{"role": "user", "content": "word " * 1500}]  # about a second of prefill
    sock = raw(slow, request_bytes({"messages": messages}))
    until(lambda: running(slow) == 1)
    sock.close()
    until(lambda: running(slow) == 0)


# -- waiting ---------------------------------------------------------------------------------


def test_many_prompts_begin_with_one_place(slow: Live) -> None:
    """The others follow as places come free: eight at once find room for two here."""
    body = {"model": MODEL, "prompt": ["One", "Two"] * 4, "max_tokens": 2}
    response = slow.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    assert [choice["index"] for choice in response.json()["choices"]] == list(range(8))


def test_prompts_that_are_too_long_together(slow: Live) -> None:
    body = {"model": MODEL, "prompt": [[1] * 1000] * 66, "max_tokens": 2}
    response = slow.post("/v1/completions", body)
    assert response.status_code == 400
    assert "65536 tokens together: send them in several" in response.text


def test_a_full_queue_is_429_with_retry_after(slow: Live) -> None:
    first = raw(slow, request_bytes({"stream": True}))
    until(lambda: slow.service.models[0].engine.stats().running == 1)
    second = raw(slow, request_bytes({"stream": True}))
    until(lambda: running(slow) == 2)
    response = slow.chat("/v1", {})
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "rate_limit_exceeded"
    assert int(response.headers["Retry-After"]) >= 1
    first.close()
    second.close()


@pytest.mark.parametrize("slow", [0.5], indirect=True, ids=["0.5 s"])
def test_a_request_past_its_deadline_ends_with_an_error(slow: Live) -> None:
    response = slow.chat("/v1", {})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "request_timeout"
    assert response.headers["x-should-retry"] == "false"
    text = slow.chat("/v1", {"stream": True}).text
    assert events_of(re.sub(r"(?m)^: ping\n\n", "", text))[-1]["error"]["code"] == "request_timeout"


def test_a_silent_stream_gets_comments(slow: Live) -> None:
    assert slow.runner is not None
    slow.runner.before = lambda segments: time.sleep(0.4)
    text = slow.chat("/v1", {"stream": True, "max_tokens": 2}).text
    assert text.count(": ping\n\n") >= 2


# -- slow peers ------------------------------------------------------------------------------


def closed(sock: socket.socket, seconds: float) -> bytes:
    """What the server sends until it hangs up, which must be within `seconds`."""
    sock.settimeout(seconds)
    got = b""
    with sock, contextlib.suppress(ConnectionError):
        while data := sock.recv(65536):
            got += data
    return got


def test_a_slow_head_is_hung_up_on(slow: Live) -> None:
    sock = raw(slow, b"POST /v1/chat/comp")
    assert slow.chat("/v1", {"max_tokens": 1}).status_code == 200  # meanwhile
    assert closed(sock, 30) == b""
    assert closed(raw(slow), 30) == b""  # nothing at all


def test_a_head_that_drips_is_hung_up_on(slow: Live) -> None:
    with raw(slow) as sock, pytest.raises(OSError):
        for byte in b"GET /health HTTP/1.1\r\nHost: xxxxxxxxxxxxxxxxxxxxxx\r\n" * 3:
            sock.sendall(bytes([byte]))
            time.sleep(0.05)


def test_a_slow_body_is_408(slow: Live) -> None:
    sock = raw(slow, request_bytes({})[:-5])
    assert slow.chat("/v1", {"max_tokens": 1}).status_code == 200  # meanwhile
    assert closed(sock, 30).startswith(b"HTTP/1.1 408")


def test_chunks_of_a_byte_leave_room_for_others(
    scripted: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []
    rest = TimedProtocol._rest
    monkeypatch.setattr(TimedProtocol, "_rest", lambda *at: (rests.append(at[1]), rest(*at)))
    whole = request_bytes({"max_tokens": 1, "metadata": {"a": "b"}})
    head, _, body = whole.partition(b"\r\n\r\n")
    length = f"Content-Length: {len(body)}".encode()
    head = head.replace(length, b"Transfer-Encoding: chunked\r\nConnection: close")
    body = b" " * 30_000 + body  # 180 kB: three reads of thousands of chunks
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    answer = closed(raw(scripted, head + b"\r\n\r\n" + chunks), 60)
    assert answer.startswith(b"HTTP/1.1 200")  # nothing was lost
    assert rests and all(seconds > COSTLY_READ for seconds in rests)


def test_a_reader_that_does_not_read_is_let_go(slow: Live) -> None:
    assert slow.runner is not None
    slow.runner.before = None
    body = {"stream": True, "logprobs": True, "top_logprobs": 20, "max_tokens": 1900}
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = slow.url.removeprefix("http://").split(":")
        sock.connect((host, int(port)))
        engine = slow.service.models[0].engine
        asked = engine.stats().requests
        sock.sendall(request_bytes(body))
        until(lambda: engine.stats().requests > asked)  # it may be over before one looks again
        until(lambda: running(slow) == 0)
        until(lambda: slow.service.active == 0)
        assert slow.http.get("/health").status_code == 200


def test_idle_connections_do_not_keep_a_healthy_client_out(slow: Live) -> None:
    idle = [raw(slow) for _ in range(200)]
    assert slow.chat("/v1", {"max_tokens": 2}).status_code == 200
    for sock in idle:
        sock.close()


def test_what_is_not_http_gets_the_envelope(slow: Live) -> None:
    answer = closed(raw(slow, b"HELLO\r\n\r\n"), 30)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["code"] == "bad_http"


def test_a_kept_connection_serves_again(slow: Live) -> None:
    for _ in range(3):
        assert slow.chat("/v1", {"max_tokens": 1}).status_code == 200


# -- starting and stopping -------------------------------------------------------------------


def test_requests_while_loading_are_503(tokenizer: Tokenizer) -> None:
    gate = threading.Event()

    def load() -> Any:
        gate.wait(10)
        return [scripted_model(tokenizer, ScriptRunner(tokenizer))]

    with live(Settings(port=0, access_log="off"), load, wait=False) as server:
        for response in (server.chat("/v1", {}), server.http.get("/health"),
                         server.http.get("/v1/models")):  # fmt: skip
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "model_loading"
            assert response.headers["Retry-After"]
        compiling.append("q4-f16")
        told = server.http.get("/health").json()["error"]["message"]
        compiling.remove("q4-f16")
        assert told.startswith("The kernels for q4-f16 are being compiled")
        gate.set()
        until(lambda: server.http.get("/health").status_code == 200)
        ready = {"status": "ready", "models": ["scripted"], "processor": "numpy"}
        assert server.http.get("/health").json() == ready


def test_draining_refuses_new_work_and_lets_running_requests_finish(slow: Live) -> None:
    got: list[str] = []
    talk = threading.Thread(
        target=lambda: got.append(slow.chat("/v1", {"stream": True, "max_tokens": 60}).text)
    )
    talk.start()
    until(lambda: running(slow) == 1)
    slow.server.drain()
    response = slow.chat("/v1", {})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "draining"
    assert response.headers["Retry-After"]
    talk.join(60)
    assert events_of(got[0])[-1]["choices"][0]["finish_reason"] == "length"
    slow.thread.join(60)
    assert not slow.thread.is_alive()


# -- seen from outside -----------------------------------------------------------------------


@pytest.mark.parametrize("prefix", PREFIXES)
def test_replay_agrees_bit_by_bit(scripted: Live, prefix: str) -> None:
    body = {"temperature": 1.5, "max_tokens": 10, "n": 2, "stop": "zzz"}
    made = scripted.chat(prefix, body).json()
    replay = scripted.http.get(f"{prefix}/completions/{made['id']}/replay").json()
    assert replay["identical"] is True
    assert replay["tokens_compared"] == made["usage"]["completion_tokens"]
    assert scripted.http.get(f"{prefix}/completions/none/replay").status_code == 404


def test_metrics_count_what_happens(scripted: Live) -> None:
    scripted.chat("/v1", {})
    text = scripted.http.get("/metrics").text
    for name in (
        "tinyllm_http_requests_total", "tinyllm_generated_tokens_total",
        "tinyllm_kept_guesses_total", "tinyllm_queue_length",
        "tinyllm_batch_size", "tinyllm_time_to_first_token_seconds_bucket",
        "tinyllm_time_per_token_seconds_bucket", "tinyllm_prefix_cache_hits_total",
        "tinyllm_prompt_tokens_total", "tinyllm_choices_finished_total",
    ):  # fmt: skip
        assert re.search(rf"^{name}", text, re.MULTILINE), name


def test_access_log_has_times_and_tokens_and_no_content(slow: Live, tmp_path: Path) -> None:
    headers = {"X-Session-ID": "s1", "X-Request-ID": "r1"}
    messages = [{"role": "user", "content": "a secret"}]
    slow.chat("/v1", {"max_tokens": 3, "messages": messages}, headers=headers)
    path = tmp_path / "access.log"
    until(lambda: '"r1"' in path.read_text())
    assert "secret" not in path.read_text()
    entry = next(e for e in map(json.loads, path.read_text().splitlines()) if e["id"] == "r1")
    assert entry["session"] == "s1" and entry["status"] == 200
    assert entry["completion_tokens"] == 3 and entry["seconds"] > 0
    assert entry["completion"].startswith("chatcmpl-")


def test_a_full_disk_for_the_log_does_not_break_serving(tokenizer: Tokenizer) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    runner = ScriptRunner(tokenizer)
    options = Settings(port=0, access_log="/dev/full")
    with live(options, lambda: [scripted_model(tokenizer, runner)]) as server:
        for _ in range(3):
            assert server.chat("/v1", {}).status_code == 200
        until(lambda: server.service.access_log.dropped >= 3)


def test_tokenize_and_detokenize_are_inverse(scripted: Live) -> None:
    text = "Hello, 🦙 <|im_end|> 123"
    made = scripted.post("/v1/tokenize", {"text": text}).json()
    assert made["count"] == len(made["tokens"]) and made["max_model_len"] == 2048
    back = scripted.post("/v1/detokenize", {"tokens": made["tokens"], "model": MODEL}).json()
    assert back == {"text": text}


def test_control_tokens_typed_by_a_user_arrive_as_text(
    scripted: Live, tokenizer: Tokenizer
) -> None:
    specials = "".join(tokenizer.special_tokens)
    plain = scripted.post("/v1/tokenize", {"messages": [{"role": "user", "content": ""}]}).json()
    typed = scripted.post(
        "/v1/tokenize", {"messages": [{"role": "user", "content": specials}]}
    ).json()
    control = set(tokenizer.special_tokens.values())
    count = lambda ids: sum(id in control for id in ids)  # noqa: E731
    assert count(typed["tokens"]) == count(plain["tokens"])
