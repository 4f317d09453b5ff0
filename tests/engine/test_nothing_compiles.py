"""Once an engine is there, everything that its requests need is compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

from tests.tiny_compiled import tiny_compiled
from tinyllm.engine.engine import Engine
from tinyllm.engine.types import Prompt, Request
from tinyllm.kernels.processor import JIT
from tinyllm.sampler import SamplingParams


@pytest.mark.skipif(not JIT, reason="nothing is ever compiled")
def test_no_request_compiles_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_compiled("q8"))
    engine.start()
    compiled: list[str] = []
    compile_: Any = Dispatcher.compile

    def noted(self: Any, signature: Any) -> Any:
        compiled.append(f"{self.py_func.__qualname__} {signature}")
        return compile_(self, signature)

    monkeypatch.setattr(Dispatcher, "compile", noted)
    prompt = Prompt(np.array([1, 2, 3], np.int32))
    try:
        for i, params in enumerate(
            [
                SamplingParams(temperature=0.0),
                SamplingParams(seed=1),
                SamplingParams(seed=1, top_k=3, top_p=0.9, temperature=0.7),
                SamplingParams(seed=1, frequency_penalty=0.5, logit_bias={3: 2.0}),
            ]
        ):
            asked = Request(f"r{i}", prompt, max_tokens=4, params=params, top_logprobs=3)
            assert engine.run(asked, 20).answers[0].tokens
    finally:
        engine.stop()
    assert compiled == []
