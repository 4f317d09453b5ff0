"""Command R7B and Command A: windowed layers that turn, then whole ones that don't."""

from __future__ import annotations

from tinyllm.errors import ConfigError
from tinyllm.families.cohere import DEFAULTS, common
from tinyllm.families.family import Family, Fields, layers_of
from tinyllm.families.keys import Keys
from tinyllm.families.rotary import DEFAULT_THETA


def read(keys: Keys) -> Fields:
    """Command R's keys and the layers' kinds."""
    keys.must_be("use_qk_norm", False)
    keys.pass_over("cache_implementation", "order_of_interleaved_layers", "layer_switch")
    fields = common(keys, DEFAULT_THETA)
    window, every = keys.optional("sliding_window", int), keys.get("sliding_window_pattern", int, 4)
    if every < 1:
        raise ConfigError(f"sliding_window_pattern must be at least 1, not {every}")
    layers = layers_of(
        keys, fields["n_layers"], window, lambda i: (i + 1) % every != 0, full="none"
    )
    return fields | {"layers": layers}


COHERE2 = Family(
    "Command R7B", "cohere2", "Cohere2ForCausalLM", read,
    defaults={**DEFAULTS, "sliding_window": 4096},
    paper="https://arxiv.org/abs/2504.00698",
)  # fmt: skip
