"""Models whose images are rows placed in the text: every view of the page, beside the notebook."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, Response, expect

import tinyllm
from tests.api.support import Live, live
from tests.seeing_folders import write_gemma, write_qwen
from tests.smolvlm_folder import write_smolvlm
from tests.vision_models import picture
from tinyllm.api.house.loading import load_models
from tinyllm.api.house.settings import Settings
from tinyllm.step import Step

QUESTION = "What is this?"
SIZE = (90, 140)
WRITERS: dict[str, Callable[[Path, Path], None]] = {
    "gemma": write_gemma, "qwen": write_qwen, "smolvlm": write_smolvlm,
}  # fmt: skip


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("qwen", "smolvlm")]


@pytest.fixture(scope="module", params=["gemma", *LONG])
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, weights_folder: Path
) -> Path:
    folder = tmp_path_factory.mktemp("seeing") / str(request.param)
    WRITERS[request.param](folder, weights_folder)
    return folder


@pytest.fixture(scope="module")
def seeing(folder: Path) -> Iterator[Live]:
    settings = Settings(
        port=0, access_log="off", model=(str(folder),), backend="reference", max_tokens_cap=8
    )
    with live(settings, lambda: load_models(settings)) as server:
        yield server


class Looks:
    """What the page asked of /look, and what it was told."""

    def __init__(self, page: Page) -> None:
        self.answers: list[tuple[dict[str, Any], dict[str, Any]]] = []
        page.on("response", self._note)

    def _note(self, response: Response) -> None:
        if response.url.endswith("/look"):
            asked = json.loads(response.request.post_data or "")
            self.answers.append((asked, response.json()))

    def last(self, want: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The newest that asked for this kind of view."""
        return [both for both in self.answers if want in both[0]["want"]][-1]


def unpacked(entry: dict[str, Any]) -> NDArray[Any]:
    raw = np.frombuffer(base64.b64decode(entry["data"]), entry["dtype"])
    return raw.reshape(entry["shape"])


def test_every_view_has_the_notebooks_numbers(
    browser: Browser, seeing: Live, folder: Path, tmp_path: Path
) -> None:
    Image.fromarray(picture(*SIZE)).save(tmp_path / "waves.png")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    looks = Looks(page)
    page.goto(f"{seeing.url}/")
    expect(page.locator("#status")).to_contain_text("ready")
    page.set_input_files("#file", tmp_path / "waves.png")
    expect(page.locator("#pictures img")).to_have_count(1)
    page.fill("#text", QUESTION)
    page.press("#text", "Enter")
    answered = page.locator("#strip .tile:not(.prompt)")
    expect(answered.nth(4)).to_be_attached()
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator("#strip .picture")).to_have_count(1)  # its rows are one tile
    answered.nth(3).click()
    for view in ("why", "attention", "depths", "cache", "number", "image"):
        page.click(f"[data-view={view}]")
        expect(page.locator("#view[aria-busy=false]")).to_be_visible()
        expect(page.locator("#view")).not_to_contain_text("error")
    expect(page.locator("#view .seen .patches")).not_to_have_count(0)

    asked, told = looks.last("logits")
    step = step_of(folder, asked)
    assert told["replay_error"] < 1e-5
    assert told["logprob"] == pytest.approx(step.logprob, abs=1e-4)
    for mine, own in zip(told["candidates"], step.candidates(12), strict=False):
        assert mine["token"] == own.token and mine["p_raw"] == pytest.approx(own.p_raw, rel=1e-3)
    _, told = looks.last("attention")
    for i, head in enumerate(told["attention"]["heads"]):
        own_row = step.attention(told["attention"]["layer"], head)
        np.testing.assert_allclose(unpacked(told["attention"]["weights"])[i], own_row, atol=1e-3)
    _, told = looks.last("lens")
    for row, depth in zip(told["lens"], step.logit_lens(5), strict=True):
        assert row["p"] == pytest.approx(depth.p, rel=1e-3) and row["rank"] == depth.rank
    asked, told = looks.last("explain")
    own_number = step.explain(**asked["want"]["explain"])
    assert told["explain"]["value"] == pytest.approx(own_number.value, abs=1e-5)
    _, told = looks.last("image")
    lm = tinyllm.load(folder)
    assert lm.vision is not None
    seen, rows = lm.vision.seen(picture(*SIZE))
    assert told["image"]["patches"] == list(seen.patches)
    assert told["image"]["n_rows"] == len(rows) == len(seen.places)
    lengths = [row["length"] for row in told["image"]["rows"]]
    own_lengths = np.linalg.norm(rows[:, : lm.config.dim], axis=1)[: len(lengths)]
    np.testing.assert_allclose(lengths, own_lengths, rtol=1e-5)

    page.locator("#strip .picture").click()
    for view in ("why", "attention", "depths", "number", "worlds", "image"):
        page.click(f"[data-view={view}]")
        expect(page.locator("#view[aria-busy=false]")).to_be_visible()
    page.locator("#view tbody button").first.click()  # which part of the image a row stands for
    expect(page.locator("#view .seen .chosen")).to_have_count(1)
    page.close()
    assert not said


def step_of(folder: Path, asked: dict[str, Any]) -> Step:
    """The token's step as a notebook has it, in a session of its own."""
    tokens, n_prompt, position = asked["tokens"], asked["n_prompt"], asked["position"]
    sampling = {name: asked[name] for name in ("temperature", "top_k", "top_p", "seed")}
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    session = tinyllm.load(folder).session(messages, images=[picture(*SIZE)], **sampling)
    assert session.prompt == tokens[:n_prompt]
    for token in tokens[n_prompt:position]:
        session.step(token)
    return session.step(tokens[position])
