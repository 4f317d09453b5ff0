"""Qwen3-VL: Qwen3, or Qwen3 with experts, whose positions have three axes where there are images.

Rotary pairs take turns at time, height and width (interleaved M-RoPE), and rows of an image are
added to the output of early layers too (DeepStack, https://arxiv.org/abs/2406.04334). Bai et al.
2025, https://arxiv.org/abs/2511.21631.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tinyllm.errors import ConfigError
from tinyllm.families import qwen3, qwen3_moe
from tinyllm.families.family import Family, Fields
from tinyllm.families.keys import Keys
from tinyllm.families.parts import Experts
from tinyllm.families.tensors import Layout, Names, Taken

SECTION = [24, 20, 20]
THETA = 500_000.0
ROPE = ("rope_parameters", "rope_scaling")


def text_keys(inner: Mapping[str, Any]) -> dict[str, Any]:
    """text_config as the family's that it is, without what is read here."""
    keys = dict(inner)
    for name in ROPE:
        if isinstance(rope := keys.get(name), Mapping):
            keys[name] = {k: v for k, v in rope.items() if not k.startswith("mrope_")}
    ropes = [keys[name] for name in ROPE if isinstance(keys.get(name), Mapping)]
    if not any("rope_theta" in given for given in (keys, *ropes)):
        keys["rope_theta"] = THETA
    return keys


def changes(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What images change in the language model."""
    inner, eyes = raw.get("text_config"), raw.get("vision_config")
    inner = inner if isinstance(inner, Mapping) else {}
    ropes: list[Mapping[str, Any]] = [
        inner[name] for name in reversed(ROPE) if isinstance(inner.get(name), Mapping)
    ]
    rope = ropes[0] if ropes else {}
    section = rope.get("mrope_section", SECTION)
    if not isinstance(section, list) or len(section) != 3 or not all(type(n) is int and n >= 0
                                                                     for n in section):  # fmt: skip
        raise ConfigError(f"mrope_section must be three numbers of pairs, not {section!r}")
    if rope.get("mrope_interleaved", True) is not True:
        raise ConfigError("mrope_interleaved is off; Qwen3-VL's axes take turns")
    deep = (eyes if isinstance(eyes, Mapping) else {}).get("deepstack_visual_indexes", [8, 16, 24])
    return {"axes": tuple(section), "deep_rows": len(deep)}


def read_experts(keys: Keys) -> Fields:
    """Qwen3's keys; chosen experts' weights are always normalised."""
    keys.pass_over("norm_topk_prob")
    fields = qwen3_moe.read(keys)
    experts: Experts = fields["experts"]
    return fields | {"experts": replace(experts, weights="normalised")}


QWEN3_VL = Family(
    "Qwen3-VL (text)", "qwen3_vl_text", "Qwen3VLTextModel", qwen3.read,
    defaults=qwen3.QWEN3.defaults,
    names=qwen3.QWEN3.names,
    paper="https://arxiv.org/abs/2511.21631",
)  # fmt: skip

PAIR = ("mlp.experts.N.gate_proj", "mlp.experts.N.up_proj")
TURNED: Layout = "rows or columns"  # the hub's are columns; transformers 5 writes rows
QWEN3_VL_MOE = Family(
    "Qwen3-VL with experts (text)", "qwen3_vl_moe_text", "Qwen3VLMoeTextModel", read_experts,
    defaults=qwen3_moe.QWEN3_MOE.defaults,
    names=Names(tensors={
        "mlp.router": "mlp.gate",
        "mlp.experts.N.gate_proj.weight": Taken("mlp.experts.gate_up_proj!", 0, TURNED, PAIR),
        "mlp.experts.N.up_proj.weight": Taken("mlp.experts.gate_up_proj!", 1, TURNED, PAIR),
        "mlp.experts.N.down_proj.weight": Taken("mlp.experts.down_proj!", 0, TURNED),
    }),
    paper="https://arxiv.org/abs/2511.21631",
)  # fmt: skip
