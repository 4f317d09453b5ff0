"""A model small enough to try a thousand times, with bytes for tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, cast

import numpy as np

from tinyllm.config import ModelConfig
from tinyllm.model import Model
from tinyllm.text.characters import TokenTexts
from tinyllm.tokenizer import Tokenizer
from tinyllm.weights import expected_shapes

CONFIG = ModelConfig(
    dim=24,
    hidden_dim=40,
    n_layers=3,
    n_heads=6,
    n_kv_heads=2,
    head_dim=4,
    vocab_size=257,
    max_seq_len=512,
    rope_theta=1e4,
    norm_eps=1e-5,
    tie_embeddings=True,
)
EOS = 256


def tiny_model(seed: int = 0, dtype: Any = np.float32, scale: float = 0.3) -> Model:
    """Random weights, large enough for attention to be far from uniform."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in expected_shapes(CONFIG).items():
        if len(shape) == 1:
            weights[name] = (1 + 0.1 * rng.standard_normal(shape)).astype(dtype)
        else:
            weights[name] = (scale * rng.standard_normal(shape)).astype(dtype)
    return Model(CONFIG, weights)


class Bytes(TokenTexts):
    """A tokenizer whose tokens are bytes; 256 ends a turn."""

    vocab_size = 257
    eos_ids = (EOS,)
    special_tokens: Mapping[str, int] = MappingProxyType({"<end>": EOS})

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        return b"".join(self.token_bytes(i) for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < EOS else b"<end>"


def bytes_tokenizer() -> Tokenizer:
    """`Bytes` under the name of the class that it stands in for."""
    return cast(Tokenizer, Bytes())
