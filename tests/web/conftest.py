"""A browser and a server for the page: scripted answers, looks into a model of random weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.api.support import Live, ScriptRunner, live, scripted_model
from tests.tiny import CONFIG
from tinyllm.api.house.settings import Settings
from tinyllm.api.prompt.served import ServedModel
from tinyllm.model import Model
from tinyllm.tokenizer import Tokenizer
from tinyllm.weights import expected_shapes

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")  # its event loop would be in the way of other modules' own
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs the extra program chromium")
    with sync_playwright() as p:
        yield p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="session")
def server(weights_folder: Path) -> Iterator[Live]:
    tokenizer = Tokenizer.from_folder(weights_folder)
    config = replace(CONFIG, vocab_size=tokenizer.vocab_size, max_seq_len=2048)
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(1 if len(shape) == 1 else 0, 0.2, shape).astype(np.float32)
        for name, shape in expected_shapes(config).items()
    }
    model = Model(config, weights)
    runner = ScriptRunner(tokenizer, "Tokyo is 東京 🙂 <img onerror=alert(1)>")
    settings = Settings(port=0, access_log="off", max_tokens_cap=64)

    def make() -> list[ServedModel]:
        shape = {"n_layers": config.n_layers, "n_heads": config.n_heads}
        return [scripted_model(tokenizer, runner, readable=lambda: model, **shape)]

    with live(settings, make, runner=runner) as server:
        yield server


@pytest.fixture
def page(browser: Browser, server: Live) -> Iterator[Page]:
    """The page, ready; anything on the console, and any error, fails the test."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{server.url}/")
    expect(page.locator("#status")).to_contain_text("ready")
    yield page
    page.close()
    assert not said
