"""Gemma 3 and Qwen3-VL over the wire: several images, the answer that the library gives."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import tinyllm
from tests.api.support import live
from tests.seeing_folders import write_gemma, write_qwen, write_qwen_moe
from tests.vision_models import picture
from tinyllm.api.house.loading import load_models
from tinyllm.api.house.settings import Settings

SIZES = ((40, 90), (64, 64), (120, 70))


def data_url(height: int, width: int) -> str:
    file = io.BytesIO()
    Image.fromarray(picture(height, width)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("write", [write_gemma, write_qwen, write_qwen_moe])
def test_several_images_in_two_turns(
    write: Callable[[Path, Path], None], tmp_path: Path, weights_folder: Path
) -> None:
    folder = tmp_path / "seeing"
    write(folder, weights_folder)

    def turns(image: Callable[[int], dict[str, object]]) -> list[dict[str, object]]:
        return [
            {"role": "user", "content": [{"type": "text", "text": "Compare"}, image(0), image(1)]},
            {"role": "assistant", "content": [{"type": "text", "text": "Done."}]},
            {"role": "user", "content": [image(2), {"type": "text", "text": "And now?"}]},
        ]

    lm = tinyllm.load(folder)
    images = [picture(*size) for size in SIZES]
    messages = turns(lambda i: {"type": "image"})
    expected = lm.generate(messages, images=images, max_tokens=6, temperature=0)
    n_prompt = len(lm.prompt(messages, images).tokens)

    settings = Settings(
        port=0, access_log="off", model=(str(folder),), backend="reference", max_tokens_cap=64
    )
    sent = turns(lambda i: {"type": "image_url", "image_url": {"url": data_url(*SIZES[i])}})
    with live(settings, lambda: load_models(settings)) as server:
        name = server.http.get("/v1/models").json()["data"][0]["id"]
        body = {"model": name, "messages": sent, "max_tokens": 6, "temperature": 0, "top_p": 1}
        for _ in range(2):  # the second from what the first has cached
            answer = server.post("/v1/chat/completions", body)
            assert answer.status_code == 200, answer.text
            got = answer.json()
            assert got["usage"]["prompt_tokens"] == n_prompt
            assert got["choices"][0]["message"]["content"].strip() == expected.text.strip()
