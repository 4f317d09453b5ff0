"""The default vision model over the wire: its text is the text model's, its encoder comes later."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tinyllm
from tests.api.support import PREFIXES, Live, live
from tests.assembled_folder import write_assembled
from tests.vision_models import picture
from tinyllm.api.contract.errors import ApiError
from tinyllm.api.house.loading import load_models
from tinyllm.api.house.settings import Settings
from tinyllm.api.prompt.vision import LazyVision
from tinyllm.errors import ImageError, WeightsError
from tinyllm.lm import LM

ALIAS = "qwen3-vl-30b"
TEXT = "smollm2-135m-instruct"
WEB = "https://example.com/image.jpg"


def file_of(height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(height, width)).save(file, "JPEG")
    return file.getvalue()


def flat(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


class Web:
    """Serves one image."""

    async def fetch(self, url: str) -> bytes:
        if url != WEB:
            raise ImageError("its host can't be reached")
        return file_of(60, 90)


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, weights_folder: Path, dinov2_folder: Path
) -> Path:
    return write_assembled(tmp_path_factory.mktemp("models") / "seeded")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Live]:
    settings = Settings(port=0, access_log="off", model=(TEXT, str(folder)), kv_cache_mb=128)
    with live(settings, lambda: load_models(settings), images=Web()) as server:
        yield server


@pytest.fixture(scope="module")
def lm(folder: Path) -> LM:
    return tinyllm.load(folder, dtype="q8")


def data_url(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def ask(*parts: str, **more: Any) -> dict[str, Any]:
    content = [
        {"type": "image_url", "image_url": {"url": part}}
        if part.startswith(("https:", "data:"))
        else {"type": "text", "text": part}
        for part in parts
    ]
    turn = {"role": "user", "content": content}
    return {"model": ALIAS, "messages": [turn], "max_tokens": 6, "temperature": 0, **more}


def post(server: Live, body: dict[str, Any], prefix: str = "/v1") -> dict[str, Any]:
    response = server.post(f"{prefix}/chat/completions", body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_text_needs_no_encoder(server: Live) -> None:
    """Before any image: the same bits from either name, and nothing was loaded for them."""
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    body = {"messages": turns, "max_tokens": 12, "logprobs": True, "top_logprobs": 3}
    for more in ({"temperature": 0}, {"seed": 7, "n": 2}):
        one = post(server, {**body, **more, "model": TEXT})
        other = post(server, {**body, **more, "model": ALIAS})
        for choice in one["choices"]:
            choice.pop("confidence_score", None)  # only the text model's card speaks for it
        assert one["choices"] == other["choices"]
        assert one["usage"]["prompt_tokens"] == other["usage"]["prompt_tokens"]
    vision = server.service.model(ALIAS).vision
    assert vision is not None and not vision.loading_or_loaded


def test_one_language_model_serves_both_names(server: Live) -> None:
    text, seeing = server.service.model(TEXT), server.service.model(ALIAS)
    assert text is not seeing and text.engine is seeing.engine
    assert text.tokenizer is seeing.tokenizer and text.grammars is seeing.grammars
    assert list(server.service.engines) == [TEXT]
    # What answers depend on is more, though: their fingerprints differ.
    assert text.fingerprint != seeing.fingerprint
    assert len(text.fingerprint) == len(seeing.fingerprint)
    listed = server.http.get("/v1/models").json()["data"]
    assert {TEXT, "nugen-flash-instruct", "seeded-vision", ALIAS} <= {m["id"] for m in listed}
    assert server.http.get("/metrics").text.count("tinyllm_prompt_tokens_total{") == 1


@pytest.mark.parametrize("prefix", PREFIXES)
def test_both_examples_of_the_page(server: Live, lm: LM, prefix: str) -> None:
    question = "Describe what you see in this image."
    image = file_of(60, 90)
    for url in (WEB, data_url(image)):
        answer = post(server, ask(question, url), prefix)
        assert answer["model"] == ALIAS and "confidence_score" not in answer
        content = [{"type": "text", "text": question}, {"type": "image"}]
        prompt = lm.prompt([{"role": "user", "content": content}], [image])
        assert answer["usage"]["prompt_tokens"] == len(prompt.tokens)  # image tokens count
        expected = lm.generate(prompt, max_tokens=6, temperature=0)
        assert answer["choices"][0]["message"]["content"] == expected.text


def test_several_images_in_any_user_turn(server: Live, lm: LM) -> None:
    images = [file_of(20 + n, 30) for n in range(3)]
    urls = [data_url(image) for image in images]
    turns = [
        {"role": "system", "content": "Look closely."},
        ask("These:", urls[0], urls[1])["messages"][0],
        {"role": "assistant", "content": "I see."},
        ask(urls[2], "And now?")["messages"][0],
    ]
    answer = post(server, ask() | {"messages": turns})
    image, text = {"type": "image"}, {"type": "text"}
    chat = [
        turns[0],
        {"role": "user", "content": [{**text, "text": "These:"}, image, image]},
        turns[2],
        {"role": "user", "content": [image, {**text, "text": "And now?"}]},
    ]
    prompt = lm.prompt(chat, images)
    assert answer["usage"]["prompt_tokens"] == len(prompt.tokens)
    expected = lm.generate(prompt, max_tokens=6, temperature=0)
    assert answer["choices"][0]["message"]["content"] == expected.text


def test_a_prefix_is_reused_over_an_image_and_not_over_another(server: Live, lm: LM) -> None:
    assert lm.vision is not None
    files = [file_of(64, 64), *(flat(colour) for colour in ("red", "white", "black", "navy"))]
    ask_it = [{"role": "user", "content": [{"type": "image"}]}]
    ids = [lm.prompt(ask_it, [file]).match_ids() for file in files]
    other = next(i for i in range(1, len(files)) if not np.array_equal(ids[i], ids[0]))

    def cached(file: bytes, question: str) -> tuple[int, int]:
        usage = post(server, ask(data_url(file), question))["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]

    cached(files[0], "What is in the picture?")
    again, length = cached(files[0], "What is in the picture?")
    assert again == length - 1  # all but the last token, which the answer starts from
    onward, _ = cached(files[0], "How many are there?")
    swapped, _ = cached(files[other], "What is in the picture?")
    start = int((ids[0] < 0).argmax())  # of the image's rows
    assert swapped == start and onward >= start + (ids[0] < 0).sum()


def test_the_text_model_names_itself_and_refuses(server: Live) -> None:
    response = server.post("/v1/chat/completions", {**ask("?", WEB), "model": TEXT})
    assert response.status_code == 400 and TEXT in response.json()["error"]["message"]


def test_a_connector_that_is_missing_is_503_and_text_goes_on(tmp_path: Path) -> None:
    folder = write_assembled(tmp_path / "seeded")
    (folder / "connector.safetensors").unlink()
    settings = Settings(port=0, access_log="off", model=(str(folder),), kv_cache_mb=64)
    with live(settings, lambda: load_models(settings)) as server:
        url = data_url(file_of(9, 9))
        response = server.post("/v1/chat/completions", ask("?", url))
        assert response.status_code == 503 and response.headers["retry-after"]
        error = response.json()["error"]
        assert error["code"] == "vision_unavailable" and str(tmp_path) not in error["message"]
        assert post(server, ask("Hi"))["usage"]["completion_tokens"]
        write_assembled(folder)  # mended while it runs
        assert post(server, ask("?", url))["usage"]["completion_tokens"]


# -- the late part alone ----------------------------------------------------------------------


class Eyes:
    def prompt(self, messages: Any, images: Any, **extra: Any) -> Any:
        return messages, images, extra


def test_it_is_loaded_once_for_all_who_wait() -> None:
    loads: list[int] = []
    gate = threading.Event()

    def load() -> Any:
        loads.append(1)
        assert gate.wait(30)
        return Eyes()

    async def run() -> None:
        vision = LazyVision("m", load)
        assert not vision.loading_or_loaded
        waiting = [asyncio.create_task(vision.ready()) for _ in range(5)]
        await asyncio.sleep(0.02)
        waiting[0].cancel()  # a client that goes away stops nobody else
        gate.set()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(done[0], asyncio.CancelledError) and done[1:] == [None] * 4
        assert vision.loading_or_loaded and vision.prompt([], [], tools=None) == (
            [],
            [],
            {"tools": None},
        )

    asyncio.run(run())
    assert loads == [1]


def test_it_is_tried_again_after_a_failure() -> None:
    results: list[Any] = [WeightsError("/secret/place is missing"), Eyes()]

    def load() -> Any:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    async def run() -> None:
        vision = LazyVision("m", load)
        with pytest.raises(ApiError) as caught:
            await vision.ready()
        assert caught.value.status == 503 and "/secret" not in str(caught.value.message)
        await vision.ready()
        await vision.ready()

    asyncio.run(run())
    assert results == []


def test_the_background_starts_it_where_parts_are_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinyllm.api.house import loading

    loaded = threading.Event()
    monkeypatch.setattr(loading, "is_here", lambda name: name != "dinov2-small")
    monkeypatch.setattr(loading.Parts, "image_side", lambda *_, **__: loaded.set())
    models = load_models(Settings(model=(str(folder),), kv_cache_mb=64))
    try:
        assert loaded.wait(30)
        assert models[0].id == "seeded-vision"
    finally:
        models[0].engine.stop()
