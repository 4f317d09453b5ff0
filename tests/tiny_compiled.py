"""A compiled model small enough to make in a moment; its weights come from a seed."""

from __future__ import annotations

import numpy as np

from tinyllm.compiled import CompiledModel
from tinyllm.config import ModelConfig
from tinyllm.weights import expected_shapes


def tiny_compiled(dtype: str, threads: int = 2, max_seq_len: int = 128) -> CompiledModel:
    """Two layers of grouped-query attention, 40 tokens."""
    config = ModelConfig(32, 32, 2, 2, 1, 32, 40, max_seq_len, 1e4, 1e-5, False)
    rng = np.random.default_rng(0)
    weights = {
        name: (rng.standard_normal(shape) * 0.3).astype(np.float32)
        for name, shape in expected_shapes(config).items()
    }
    return CompiledModel(config, weights, dtype, threads, kv_cache_mb=4)
