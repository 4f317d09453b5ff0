"""Images over the wire: a seeded SmolVLM served on a real socket, asked on both dialects."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from tests.api.support import Live, live
from tests.smolvlm_folder import write_smolvlm
from tests.vision.test_image import gif_canvas, mutate, png_of_size, seeds, webp_canvas
from tests.vision_models import picture
from tinyllm.api.house.loading import load_models
from tinyllm.api.house.settings import Settings
from tinyllm.api.limits import MAX_IMAGES
from tinyllm.errors import ImageError
from tinyllm.lm import LM

S, O = "/api/v3/inference", "/v1"  # noqa: E741  # the contract's names of the dialects
VISION = "qwen3-vl-30b"


class Web:
    """Stands for the fetcher: what each URL gives."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []

    async def fetch(self, url: str) -> bytes:
        self.asked.append(url)
        if url not in self.files:
            raise ImageError("its host answers with status 404")
        return self.files[url]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, weights_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("models") / "smolvlm"
    write_smolvlm(folder, weights_folder)
    return folder


@pytest.fixture(scope="module")
def web() -> Web:
    return Web()


@pytest.fixture(scope="module")
def server(folder: Path, web: Web) -> Iterator[Live]:
    settings = Settings(
        port=0, access_log="off", model=(str(folder),), alias=(f"{VISION}=smolvlm",),
        dtype="f32", backend="reference", kv_cache_mb=64,
    )  # fmt: skip
    with live(settings, lambda: load_models(settings), images=web) as server:
        yield server


@pytest.fixture(scope="module")
def lm(folder: Path) -> LM:
    return LM(folder)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def data_url(data: bytes, media: str = "image/png") -> str:
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def ask(*parts: str, **more: Any) -> dict[str, Any]:
    """A request of one user turn; parts that look like a URL are images."""
    content = [
        {"type": "image_url", "image_url": {"url": part}}
        if part.startswith(("https:", "data:", "http:", "ftp:", "file:"))
        else {"type": "text", "text": part}
        for part in parts
    ]
    messages = [{"role": "user", "content": content}]
    return {"model": VISION, "messages": messages, "max_tokens": 4, "temperature": 0, **more}


def post(server: Live, prefix: str, body: dict[str, Any]) -> Any:
    response = server.post(f"{prefix}/chat/completions", body)
    return response.status_code, response.json()


@pytest.mark.parametrize("prefix", [S, O])
def test_both_examples_of_the_page(server: Live, web: Web, lm: LM, prefix: str) -> None:
    image = encoded(picture(60, 90), "JPEG")
    web.files["https://example.com/image.jpg"] = image
    describe = "Describe what you see in this image."
    answers = []
    for url in ("https://example.com/image.jpg", data_url(image, "image/jpeg")):
        status, body = post(server, prefix, ask(describe, url, max_tokens=30))
        assert status == 200, body
        assert body["model"] == VISION
        answers.append(body["choices"][0]["message"]["content"])
        content = [{"type": "text", "text": describe}, {"type": "image"}]
        prompt = lm.prompt([{"role": "user", "content": content}], [image])
        assert body["usage"]["prompt_tokens"] == len(prompt.tokens)  # image tokens count
        expected = lm.generate(prompt, max_tokens=30, temperature=0)
        assert answers[-1] == expected.text
    assert answers[0] == answers[1]
    assert web.asked[-1] == "https://example.com/image.jpg"


def test_the_openai_client(server: Live) -> None:
    client = openai.OpenAI(base_url=server.url + O, api_key="x")
    url = data_url(encoded(picture(30, 30)))
    parts: Any = ask("What is it?", url)["messages"]
    plain = client.chat.completions.create(
        model=VISION, messages=parts, max_tokens=5, temperature=0
    )
    stream = client.chat.completions.create(
        model=VISION, messages=parts, max_tokens=5, temperature=0, stream=True
    )
    text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
    assert text == plain.choices[0].message.content


def test_several_images_in_any_user_turn(server: Live, lm: LM) -> None:
    images = [encoded(picture(20 + n, 30)) for n in range(3)]
    urls = [data_url(image) for image in images]
    messages = [
        {"role": "system", "content": "Look closely."},
        ask("These:", urls[0], urls[1])["messages"][0],
        {"role": "assistant", "content": "I see."},
        ask(urls[2], "And now?")["messages"][0],
    ]
    status, body = post(server, O, ask() | {"messages": messages})
    assert status == 200, body
    chat = [
        {"role": "system", "content": "Look closely."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "These:"}, {"type": "image"}, {"type": "image"}],
        },
        {"role": "assistant", "content": "I see."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And now?"}]},
    ]
    assert body["usage"]["prompt_tokens"] == len(lm.prompt(chat, images).tokens)
    # In another order they are another conversation.
    messages[1] = ask("These:", urls[1], urls[0])["messages"][0]
    assert post(server, O, ask() | {"messages": messages})[1]["usage"]["prompt_tokens"]


def test_a_prefix_is_reused_over_an_image_and_not_over_another(server: Live) -> None:
    # Images of one size have the same token ids: only their content tells them apart.
    one, other = picture(64, 64), picture(64, 64)
    other[:32] = 7
    urls = [data_url(encoded(pixels)) for pixels in (one, other)]

    def cached(url: str, question: str) -> tuple[int, int]:
        status, body = post(server, O, ask(url, question))
        assert status == 200, body
        usage = body["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]

    cold, length = cached(urls[0], "What is in the picture?")
    again, _ = cached(urls[0], "What is in the picture?")
    onward, _ = cached(urls[0], "How many are there?")
    swapped, _ = cached(urls[1], "What is in the picture?")
    assert again > length - 70 and again > cold
    assert onward > length - 90
    assert swapped < 20  # up to the image's first row at most


@pytest.mark.parametrize("prefix", [S, O])
def test_bare_string_url_and_detail_are_fine(server: Live, prefix: str) -> None:
    url = data_url(encoded(picture(8, 8)))
    for image_url in (url, {"url": url, "detail": "high"}):
        parts = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": image_url}]
        body = ask() | {"messages": [{"role": "user", "content": parts}]}
        assert post(server, prefix, body)[0] == 200


def test_base64_is_read_leniently(server: Live) -> None:
    text = base64.b64encode(encoded(picture(9, 9))).decode()
    for variant in (
        text.rstrip("="),
        text + "==",
        text.replace("+", "-").replace("/", "_"),
        "\n".join(text[i : i + 76] for i in range(0, len(text), 76)),
        text.replace("+", "%2B").replace("/", "%2f"),
        text.replace("+", "-") + "%3D%0d%0A ",
    ):
        assert post(server, O, ask("data:image/png;base64," + variant))[0] == 200


def refused(server: Live, url: str, reason: str) -> None:
    for prefix in (S, O):
        status, body = post(server, prefix, ask("Well?", url))
        assert status == 400, body
        error = body["error"]
        assert reason in error["message"], error
        assert error["code"] == "invalid_image"
        assert error["param"] == "messages[0].content[1].image_url.url"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello", "not a PNG, JPEG, WebP or GIF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a PNG, JPEG, WebP or GIF"),
        (encoded(picture(40, 40))[:200], "truncated or damaged"),
        (encoded(picture(40, 40), "JPEG")[:300], "truncated or damaged"),
        (png_of_size(50_000, 50_000), "pixels"),
        (webp_canvas(16_000, 16_000), "pixels"),
        (gif_canvas(60_000, 60_000), "pixels"),
        (bytes(11 * 2**20), "10485760 bytes"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_files_that_can_not_be_used(server: Live, data: bytes, reason: str) -> None:
    refused(server, data_url(data), reason)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/a.png", "https://"),
        ("ftp://example.com/a.png", "https://"),
        ("file:///etc/passwd", "https://"),
        ("data:image/png,AAAA", "base64"),
        ("data:image/png;base64,@@@@", "base64"),
        ("https://example.com/missing.png", "can't be fetched: its host answers with status 404"),
    ],
)
def test_urls_that_can_not_be_used(server: Live, url: str, reason: str) -> None:
    refused(server, url, reason)


@pytest.mark.parametrize("declared", ["image", "", "application/octet-stream", "None"])
def test_the_bytes_say_what_an_image_is(server: Live, declared: str) -> None:
    url = data_url(encoded(picture(5, 80))).replace("data:image/png", f"data:{declared}", 1)
    assert post(server, O, ask(url, max_tokens=1))[0] == 200


def test_too_many_images(server: Live) -> None:
    url = data_url(encoded(picture(5, 80)))
    assert post(server, O, ask(*[url] * MAX_IMAGES, max_tokens=1))[0] == 200
    status, body = post(server, O, ask(*[url] * (MAX_IMAGES + 1)))
    assert status == 400 and f"At most {MAX_IMAGES} images" in body["error"]["message"]


def test_images_outside_user_turns_are_refused(server: Live) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url(encoded(picture(5, 5)))}}
    for role in ("system", "assistant"):
        messages = [{"role": role, "content": [part]}, {"role": "user", "content": "?"}]
        assert post(server, O, ask() | {"messages": messages})[0] == 400
        assert post(server, S, ask() | {"messages": messages})[0] == 422


def test_a_vision_model_still_reads_plain_text(server: Live, lm: LM) -> None:
    status, body = post(server, O, ask() | {"messages": [{"role": "user", "content": "Hi there"}]})
    assert status == 200
    chat = [{"role": "user", "content": "Hi there"}]
    assert body["choices"][0]["message"]["content"] == (
        lm.generate(chat, max_tokens=4, temperature=0).text
    )


def test_a_written_image_token_is_only_text(server: Live) -> None:
    status, body = post(server, O, ask("<image> <fake_token_around_image>", max_tokens=1))
    assert status == 200, body


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mutated_files_give_an_answer_or_a_400_that_says_why(server: Live) -> None:
    rng = np.random.default_rng(6)
    originals = seeds()
    seen = set()
    for i in range(84):
        data = mutate(originals[i % len(originals)], rng)
        status, body = post(server, O, ask("?", data_url(data), max_tokens=0))
        seen.add(status)
        if status != 200:
            assert status == 400 and body["error"]["code"] == "invalid_image", body
    assert seen == {200, 400}


def conversation_of_ids(server: Live, prefix: str) -> tuple[str, dict[str, Any]]:
    """An image's URL, and the ids of a conversation with it."""
    url = data_url(encoded(picture(40, 60)))
    messages = ask("What is it?", url)["messages"]
    told = server.post(f"{prefix}/tokenize", {"model": VISION, "messages": messages}).json()
    return url, told


@pytest.mark.parametrize("prefix", [S, O])
def test_ids_with_images_are_gone_on_with_as_their_conversation_is(
    server: Live, prefix: str
) -> None:
    url, told = conversation_of_ids(server, prefix)
    (span,) = told["images"]
    assert 0 < span["start"] < span["stop"] < told["count"]
    body = {"model": VISION, "prompt": told["tokens"], "max_tokens": 4, "temperature": 0}
    without = server.post(f"{prefix}/completions", body).json()["choices"][0]["text"]
    went_on = server.post(f"{prefix}/completions", {**body, "images": [url]}).json()
    _, answered = post(server, prefix, ask("What is it?", url))
    assert went_on["choices"][0]["text"] == answered["choices"][0]["message"]["content"] != without
    assert went_on["usage"]["prompt_tokens"] == answered["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("change", "param", "told"),
    [
        ({"prompt": "text"}, "images", "one prompt of token ids"),
        ({"prompt": [1, 2, 3]}, "images", "image 0 has no place"),
        ({"images": ["ftp://x"]}, "images[0]", "must begin with"),
        ({"images": ["data:image/png;base64,AAAA"]}, "images[0]", "can't be used"),
    ],
)
def test_images_that_fit_no_ids_are_named(
    server: Live, change: dict[str, Any], param: str, told: str
) -> None:
    url, ids = conversation_of_ids(server, O)
    body = {"model": VISION, "prompt": ids["tokens"], "images": [url], **change}
    answer = server.post(f"{O}/completions", body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and told in error["message"].lower()


def test_looks_into_a_conversation_with_an_image_are_a_steps(server: Live, lm: LM) -> None:
    url, told = conversation_of_ids(server, O)
    said = [*told["tokens"], 5, 6]
    n = told["count"]
    body = {"model": VISION, "tokens": said, "position": n + 1, "n_prompt": n, "images": [url]}
    content = [{"type": "text", "text": "What is it?"}, {"type": "image"}]
    prompt = lm.prompt([{"role": "user", "content": content}], [picture(40, 60)])
    for broken in (None, "softmax-scale"):
        session = lm.session(prompt, temperature=1, broken=broken)
        session.step(5, beyond_end=True)
        step = session.step(6, beyond_end=True)
        more = {"break": broken} if broken else {}
        look = server.post(f"{O}/look", {**body, "want": {"candidates": 5}, **more}).json()
        assert look["logprob"] == pytest.approx(step.logprob, abs=1e-5)
        blind = {k: v for k, v in {**body, **more}.items() if k != "images"}
        other = server.post(f"{O}/look", {**blind, "want": {"candidates": 5}}).json()
        assert other["logprob"] != pytest.approx(step.logprob, abs=1e-3)
    assert server.post(f"{O}/look", {**body, "want": {"image": {"index": 1}}}).status_code == 400


def test_what_the_connector_hands_over_is_told_row_by_row(server: Live, lm: LM) -> None:
    url, told = conversation_of_ids(server, O)
    body = {"model": VISION, "tokens": told["tokens"], "position": told["count"] - 1}
    want = {"image": {"index": 0, "start": 1}}
    image = server.post(f"{O}/look", {**body, "images": [url], "want": want}).json()["image"]
    vision = lm.vision
    assert vision is not None
    rows = vision.encode(picture(40, 60)).rows
    (span,) = told["images"]
    assert (image["start"], image["stop"]) == (span["start"], span["stop"])
    assert image["n_rows"] == len(rows) and len(image["parts"]) >= 1
    table = lm.model.weights["model.embed_tokens.weight"]
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    for row, shown in zip(rows[1:], image["rows"], strict=False):
        near = unit @ (row / np.linalg.norm(row))  # as notebook 08 has it
        best = np.argsort(-near)[:3]
        assert [word for word, _ in shown["nearest"]] == [lm.tokenizer.token_text(i) for i in best]
        assert [like for _, like in shown["nearest"]] == pytest.approx(near[best], abs=1e-5)
        assert shown["length"] == pytest.approx(np.linalg.norm(row), rel=1e-5)
        assert told["tokens"][shown["position"]] == vision.image_id
