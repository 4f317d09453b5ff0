"""Gemma 3 270M live: transformers' load of the very file that `tinyllm pull` brings."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.golden.gemma3 import load_goldens
from tests.test_gemma3 import folder, next_logits
from tinyllm.config import ModelConfig
from tinyllm.model import Model
from tinyllm.weights import load_weights

pytestmark = pytest.mark.reference

__all__ = ["folder"]


def test_next_logits_within_a_thousandth(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's and transformers' own, at import
        from tests.reference.gemma3 import Reference
    theirs = Reference(folder)
    config = ModelConfig.from_folder(folder)
    ours = Model(config, load_weights(folder, config))
    for golden in load_goldens():
        expected = theirs.next_logits(golden.tokens)
        gap = np.abs(next_logits(ours, golden.tokens) - expected).max()
        assert gap <= 1e-3, (golden.prompt, gap)
