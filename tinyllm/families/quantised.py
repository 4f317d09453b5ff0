"""What a checkpoint's `quantization_config` asks for: read, or refused by name with a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyllm.errors import ConfigError

READ = ("fp8", "mxfp4")  # `weights.py` widens them to float32


def check_quantisation(raw: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the weights are plain, fp8 with scales, or MXFP4."""
    how = raw.get("quantization_config")
    if not how:
        return
    if not isinstance(how, Mapping):
        raise ConfigError(f"quantization_config must be an object, not {how!r}")
    method = how.get("quant_method")
    if method not in READ:
        raise ConfigError(
            f"quantization_config: quant_method is {method!r}, which tinyllm doesn't read; take "
            "the checkpoint that it was made from (f32, f16, bf16 or fp8), or a GGUF file of it: "
            'dtype="q8" or "q4" then quantises it here'
        )
