"""The engine's promise where there are experts: neighbours that choose the same ones change no bit.

As tests/engine/test_invariance.py, with seeded weights.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.test_invariance import N_TOKENS, ask, behind_a_shared_prefix, crowd
from tests.test_compiled_experts import mixed, weights_of
from tinyllm.compiled import CompiledModel
from tinyllm.engine.engine import Engine
from tinyllm.engine.types import Prompt

pytestmark = pytest.mark.long

PROMPT = Prompt(np.random.default_rng(3).integers(3, 97, 150).astype(np.int32))


def test_alone_in_batches_in_chunks_and_behind_a_prefix() -> None:
    config = mixed()
    weights = weights_of(config)
    one, two = (CompiledModel(config, weights, "q4", threads, kv_cache_mb=64) for threads in (1, 2))
    engine = Engine(two, prefix_cache=False)
    engine.start()
    alone = ask(engine, PROMPT).bits
    engine.stop()
    assert [len(choice) for choice in alone] == [N_TOKENS, N_TOKENS]
    for model, neighbours, chunk in ((two, 5, None), (two, 1, 23), (one, 3, 50)):
        engine = Engine(model) if chunk is None else Engine(model, prefill_chunk=chunk)
        engine.start()
        others = crowd(engine, np.random.default_rng(), neighbours)
        assert ask(engine, PROMPT).bits == alone
        assert ask(engine, PROMPT, "again").bits == alone
        for other in others:
            assert other.done.wait(60)
        engine.stop()
    for shared in (63, 64, 100):
        heard = behind_a_shared_prefix(two, PROMPT, shared, [17, 71])
        assert heard.bits == alone and heard.cached_tokens == shared
