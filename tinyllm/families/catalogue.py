"""Every family by its model type, and the way from a configuration to its description."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from tinyllm.errors import ConfigError
from tinyllm.families import qwen3_vl
from tinyllm.families.apertus import APERTUS
from tinyllm.families.arcee import ARCEE
from tinyllm.families.cohere import COHERE
from tinyllm.families.cohere2 import COHERE2
from tinyllm.families.ernie4_5 import ERNIE4_5
from tinyllm.families.exaone4 import EXAONE4
from tinyllm.families.family import Family, Fields
from tinyllm.families.gemma import GEMMA
from tinyllm.families.gemma2 import GEMMA2
from tinyllm.families.gemma3 import GEMMA3
from tinyllm.families.glm4 import GLM, GLM4
from tinyllm.families.gpt2 import GPT2
from tinyllm.families.gpt_neox import GPT_NEOX
from tinyllm.families.gpt_oss import GPT_OSS
from tinyllm.families.granite import GRANITE
from tinyllm.families.hunyuan import HUNYUAN
from tinyllm.families.keys import Keys
from tinyllm.families.llama import LLAMA
from tinyllm.families.ministral import MINISTRAL
from tinyllm.families.ministral3 import MINISTRAL3
from tinyllm.families.mistral import MISTRAL
from tinyllm.families.mixtral import MIXTRAL
from tinyllm.families.nemotron import NEMOTRON
from tinyllm.families.olmo import OLMO
from tinyllm.families.olmo2 import OLMO2
from tinyllm.families.olmo3 import OLMO3
from tinyllm.families.olmoe import OLMOE
from tinyllm.families.phi import PHI
from tinyllm.families.phi3 import PHI3
from tinyllm.families.quantised import check_quantisation
from tinyllm.families.qwen2 import QWEN2
from tinyllm.families.qwen3 import QWEN3
from tinyllm.families.qwen3_moe import QWEN3_MOE
from tinyllm.families.smollm3 import SMOLLM3
from tinyllm.families.stablelm import STABLELM
from tinyllm.families.starcoder2 import STARCODER2

FAMILIES: tuple[Family, ...] = (
    LLAMA, QWEN3, QWEN2, GEMMA3, GEMMA2, GEMMA, MISTRAL, MINISTRAL, MINISTRAL3, PHI3, SMOLLM3,
    GRANITE, OLMO, OLMO2, OLMO3, MIXTRAL, QWEN3_MOE, OLMOE, GPT_OSS, GPT2, GPT_NEOX, PHI, STABLELM,
    STARCODER2, COHERE, COHERE2, GLM, GLM4, EXAONE4, ARCEE, ERNIE4_5, HUNYUAN, NEMOTRON, APERTUS,
)  # fmt: skip
# Language models that come inside of others alone.
INNER = (qwen3_vl.QWEN3_VL, qwen3_vl.QWEN3_VL_MOE)
BY_TYPE = {family.model_type: family for family in (*FAMILIES, *INNER)}
BY_ARCHITECTURE = {name: family for family in FAMILIES for name in family.architectures}

# Models of images and text: the language model under text_config, and what images change in it.
SEEING: dict[str, tuple[str, Fields]] = {
    "Qwen3VLForConditionalGeneration": ("qwen3_vl_text", {}),
    "Qwen3VLMoeForConditionalGeneration": ("qwen3_vl_moe_text", {}),
    "Idefics3ForConditionalGeneration": ("llama", {}),
    "SmolVLMForConditionalGeneration": ("llama", {}),
    # The reference caps the logits of `Gemma3ForCausalLM` alone.
    "Gemma3ForConditionalGeneration": (
        "gemma3_text",
        {"images_see_ahead": True, "logit_cap": None},
    ),
}


def describe(raw: Mapping[str, Any]) -> Fields:
    """The fields of a `ModelConfig` from the keys of a `config.json`.

    Raises:
        ConfigError: an unknown architecture, with the nearest known; a key that isn't understood.
    """
    changed = seeing(raw)
    raw = language_part(raw)
    family = find(raw)
    check_quantisation(raw)
    keys = Keys(raw, family.defaults)
    keys.pass_over("quantization_config")
    fields = family.read(keys)
    # In order: a set's differs from process to process, and hashes of a config must not.
    fields |= changed
    fields |= {"family": family.model_type, "biases": tuple(sorted(fields.get("biases", ())))}
    if unread := keys.unread():
        raise ConfigError(
            f"{unread[0]} is {raw[unread[0]]!r}, which tinyllm doesn't understand in a "
            f"{family.model_type}: it might change the model's numbers, so it isn't passed over "
            "(take it out of config.json if you know that it doesn't)"
        )
    return fields


def find(raw: Mapping[str, Any]) -> Family:
    """The description of a configuration; raises ConfigError by name with the nearest."""
    names, kind = architectures(raw), raw.get("model_type")
    if kind is not None and not isinstance(kind, str):
        raise ConfigError(f"model_type must be a name, not {kind!r}")
    by_name = [BY_ARCHITECTURE[name] for name in names if name in BY_ARCHITECTURE]
    if len({family.model_type for family in by_name}) > 1:
        raise ConfigError(f"architectures is {names!r}: two families; keep the one it is")
    family = BY_TYPE.get(kind) if kind else next(iter(by_name), None)
    if family is None or (names and not by_name):
        raise ConfigError(_unknown(names, kind))
    if by_name and by_name[0] is not family:
        raise ConfigError(
            f"model_type is {kind!r}, but architectures says {names[0]}: two families with other "
            "arithmetic; correct the one that is wrong"
        )
    return family


def _unknown(names: list[str], kind: str | None) -> str:
    asked = names[0] if names else kind or ""
    known = [*BY_ARCHITECTURE] if names else [*BY_TYPE]
    near = difflib.get_close_matches(asked, known, n=1, cutoff=0.3)
    nearest = f"; the nearest that it runs is {near[0]}" if near else ""
    return (
        f"architectures is {names!r} and model_type {kind!r}, which tinyllm doesn't run{nearest} "
        "(tinyllm/families/README.md lists all)"
    )


def architectures(raw: Mapping[str, Any]) -> list[str]:
    """The class names of a configuration."""
    names = raw.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"architectures must be a list of names, not {names!r}")
    return names


def seeing(raw: Mapping[str, Any]) -> Fields:
    """What a model that also sees images changes in its language model's fields."""
    names = [name for name in architectures(raw) if name in SEEING]
    if not names:
        return {}
    return SEEING[names[0]][1] | (qwen3_vl.changes(raw) if "Qwen3VL" in names[0] else {})


def language_part(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys of the language model: `raw` itself, or text_config of a model that sees images."""
    names = [name for name in architectures(raw) if name in SEEING]
    if not names:
        return raw
    wanted, _ = SEEING[names[0]]
    inner = raw.get("text_config")
    if not isinstance(inner, Mapping):
        raise ConfigError(f"text_config must be an object, not {inner!r}")
    if names[0].startswith("Qwen3VL"):
        inner = qwen3_vl.text_keys(inner)
    if (kind := inner.get("model_type", wanted)) != wanted:
        raise ConfigError(f"text_config: model_type is {kind!r}; only {wanted!r} is supported")
    outer = ("bos_token_id", "eos_token_id")
    tied = BY_TYPE[wanted].defaults.get("tie_word_embeddings", False)
    return {
        **inner,
        "model_type": wanted,
        "architectures": [],  # checkpoints name training code's own class here
        **{key: raw[key] for key in outer if raw.get(key) is not None},
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings", tied)),
    }
