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
from tests.tiny_connector import write_connector
from tests.vision_models import write_folder
from tinyllm.api.house.settings import Settings
from tinyllm.api.prompt.served import ServedModel
from tinyllm.api.prompt.vision import LazyVision
from tinyllm.model import Model
from tinyllm.tokenizer import Tokenizer
from tinyllm.vision.connected import ConnectedEncoder
from tinyllm.vision.connector import Connector
from tinyllm.vision.load import load_encoder
from tinyllm.vision.prompt import ImagePrompts
from tinyllm.weights import expected_shapes

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

expect.set_options(timeout=20_000)  # a busy machine is slow, not wrong


@pytest.fixture(scope="module")  # its event loop would be in the way of other modules' own
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs the extra program chromium")
    with sync_playwright() as p:
        yield p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


def vision(folder: Path, model: Model, tokenizer: Tokenizer) -> LazyVision:
    """An encoder and a connector of random weights, that see nothing in particular."""
    write_folder("dinov2", folder)
    file = write_connector(folder / "connector.safetensors", model.config.dim, width=32)
    connector = Connector.load(file, model.weights["model.embed_tokens.weight"], tokenizer.encode)
    token = "<|endoftext|>"
    encoder = ConnectedEncoder(
        load_encoder(folder, compiled=False), connector, token, tokenizer.special_tokens[token]
    )
    return LazyVision("seeing", lambda: ImagePrompts(encoder, tokenizer))


@pytest.fixture(scope="session")
def server(weights_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
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
        shape = {"n_layers": config.n_layers, "n_heads": config.n_heads, "shape": config}
        blind = scripted_model(tokenizer, runner, readable=lambda: model, **shape)
        eyes = vision(tmp_path_factory.mktemp("vision"), model, tokenizer)
        return [blind, replace(blind, id="seeing", vision=eyes, base=blind)]

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
