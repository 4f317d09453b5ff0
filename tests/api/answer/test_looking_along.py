"""The cache that a trace's looks run over, apart from a server."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.tiny import CONFIG, bytes_tokenizer, tiny_model
from tinyllm.api.answer import looking_along
from tinyllm.api.answer.looking_along import Inside
from tinyllm.api.contract.sampling import Trace
from tinyllm.engine.types import Prompt
from tinyllm.model import Model


def test_no_call_parts_an_image_whose_rows_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking_along, "PREFILL_CHUNK", 40)
    model = Model(replace(CONFIG, images_see_ahead=True), tiny_model().weights)
    rng = np.random.default_rng(0)
    ids, where = rng.integers(0, 256, 60).astype(np.int32), np.arange(30, 46)
    image = rng.normal(size=(16, CONFIG.dim)).astype(np.float32)
    plain = model.new_cache(60)
    model.forward(ids, plain, image_positions=where, image_rows=image, logits="none")
    prompt = Prompt(ids, where, image, -1 - where)
    inside = Inside(lambda: model, bytes_tokenizer(), prompt, Trace(), 1, lambda: None)
    cache = inside._prefill(model)
    for layer in range(CONFIG.n_layers):
        np.testing.assert_allclose(cache.values(layer), plain.values(layer), atol=1e-4)
