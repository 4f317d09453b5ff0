"""The servers that the API's tests share: one over a script, one over the real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.support import Live, ScriptRunner, live, scripted_model
from tinyllm.api.house.settings import Settings
from tinyllm.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer(weights_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(weights_folder)


@pytest.fixture(scope="session")
def _scripted(tokenizer: Tokenizer) -> Iterator[Live]:
    runner = ScriptRunner(tokenizer)
    settings = Settings(port=0, access_log="off", max_tokens_cap=256)
    with live(settings, lambda: [scripted_model(tokenizer, runner)], runner=runner) as server:
        yield server


@pytest.fixture
def scripted(_scripted: Live) -> Live:
    """The scripted server, its script as at the start."""
    assert _scripted.runner is not None
    _scripted.runner.say("The capital of France is Paris.")
    _scripted.runner.before = None
    _scripted.wait_idle()
    return _scripted
