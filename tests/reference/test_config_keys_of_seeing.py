"""The same of models that also see images: every key of their text_config, flipped, on a text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.families_folder import BASE, YARN
from tests.reference.changed_configs import whole_config
from tests.reference.test_config_keys import LEFT_OUT, asked_for, flipped, wrong
from tests.reference.test_families import reference

pytestmark = [pytest.mark.reference, pytest.mark.keys]

AUTO = "AutoModelForImageTextToText"
SEES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 8}  # fmt: skip
QWEN = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92,
        "vision_end_token_id": 93, "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "depth": 2, "num_heads": 2, "patch_size": 8,
            "out_hidden_size": 64, "num_position_embeddings": 25,
            "deepstack_visual_indexes": [0]}}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_interleaved": True,
         "mrope_section": [6, 3, 3]}  # fmt: skip
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
SMOL = {"image_token_id": 90, "scale_factor": 2, "vision_config": SEES}

# model_type → its keys, and what its text_config changes in BASE.
SEEING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen3_vl": (QWEN, {"head_dim": 24, "rope_parameters": MROPE}),
    "qwen3_vl_moe": (QWEN, {"head_dim": 24, "rope_parameters": MROPE, "mlp_only_layers": [1],
                            **EXPERTS}),
    "idefics3": (SMOL, {"model_type": "llama", "head_dim": 24}),
    "smolvlm": (SMOL, {"model_type": "llama", "head_dim": 24}),
    "gemma3": (
        {"image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92,
         "mm_tokens_per_image": 4, "vision_config": {**SEES, "model_type": "siglip_vision_model"}},
        {"head_dim": 24, "query_pre_attn_scalar": 40, "sliding_window": 6,
         "layer_types": ["sliding_attention", "full_attention"] * 2, "rope_parameters": {
             "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    ),
}  # fmt: skip
OUTER = {key: BASE[key] for key in ("tie_word_embeddings", "bos_token_id", "eos_token_id",
                                    "pad_token_id")}  # fmt: skip


def seeded(kind: str) -> Any:
    """The reference's model, every parameter off its default."""
    import transformers

    keys, changes = SEEING[kind]
    text = {**BASE, **changes}
    config = transformers.AutoConfig.for_model(kind, **{**OUTER, **keys, "text_config": text})
    return reference().fill(transformers.AutoModelForImageTextToText.from_config(config))


def language_model(model: Any) -> Any:
    """The part that reads a text."""
    return getattr(model.model, "language_model", None) or model.model.text_model


def rotary_changes(kind: str, rope: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Other rotary parameters, where the family has tests of its own for none of them."""
    if kind.startswith("qwen"):
        yield "rope_theta", {**rope, "rope_theta": 2e4}
        yield "no section", {k: v for k, v in rope.items() if k != "mrope_section"}
        yield "not interleaved", {**rope, "mrope_interleaved": False}
        yield "yarn", {**rope, **YARN}
        yield "linear", {**rope, "rope_type": "linear", "factor": 3.0}
    yield "null", None
    yield "left out", LEFT_OUT


def with_keys_flipped(kind: str, model: Any, saved: dict[str, Any]) -> Iterator[Any]:
    whole = whole_config(model)

    def inside(raw: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
        text = {k: v for k, v in raw["text_config"].items() if k != key}
        return {**raw, "text_config": text if value is LEFT_OUT else {**text, key: value}}

    for key, value in asked_for(language_model(model)).items():
        for other in flipped(key, value):
            if other is LEFT_OUT:
                for raw in (whole, saved):  # all written out, and as the reference writes it
                    yield f"no {key}", inside(raw, key, other)
            else:
                yield f"{key} = {other!r}", inside(whole, key, other)
    for label, rope in rotary_changes(kind, whole["text_config"]["rope_parameters"]):
        yield f"rotary: {label}", inside(saved, "rope_parameters", rope)
    for tied in (True, None, LEFT_OUT):
        yield f"tie_word_embeddings = {tied!r} outside", (
            {**whole, "tie_word_embeddings": tied} if tied is not LEFT_OUT
            else {k: v for k, v in whole.items() if k != "tie_word_embeddings"}
        )  # fmt: skip


@pytest.mark.parametrize("kind", SEEING)
def test_every_key_of_the_text_is_heeded_or_refused(kind: str, tmp_path: Path) -> None:
    model = seeded(kind)
    reference().save(model, tmp_path / "base")
    saved = json.loads((tmp_path / "base" / "config.json").read_text())
    cases = with_keys_flipped(kind, model, saved)
    assert not wrong(cases, tmp_path / "base", tmp_path / "work", AUTO)
