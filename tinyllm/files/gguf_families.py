"""What each architecture of a GGUF file is called on the hub: class, tensors, hyperparameters.

A GGUF file holds the numbers of a hub checkpoint under llama.cpp's names, and some of them
changed: Llama's query and key rows reordered, Gemma's norms with the 1 added, GPT-2's matrices
transposed, experts stacked. Each family is one row of data here; `gguf_weights` and `gguf_config`
undo it. Source: llama.cpp, conversion/*.py and gguf-py/gguf/tensor_mapping.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# GGUF's names of tensors → the hub's, without .weight or .bias.
OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
MLP = {
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
LAYER = {**NORMS, **ATTENTION, **MLP}
# Norms behind attention and MLP; Gemma has them in front as well.
NORMS_BEHIND = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
GEMMA_NORMS = {
    **NORMS_BEHIND, "attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm"
}  # fmt: skip
# Stacked experts, (n_experts, …) in one tensor; `{e}` is the expert.
EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{e}.gate_proj",
    "ffn_up_exps": "mlp.experts.{e}.up_proj",
    "ffn_down_exps": "mlp.experts.{e}.down_proj",
}

# config.json's keys → the file's, behind the architecture's name.
SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
RMS = {"rms_norm_eps": "attention.layer_norm_rms_epsilon"}
LAYER_NORM = {"norm_epsilon": "attention.layer_norm_epsilon"}
HIDDEN = {"intermediate_size": "feed_forward_length"}
EXPERT_SIZES = {
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
WINDOW = {"sliding_window": "attention.sliding_window"}


@dataclass(frozen=True)
class GGUFFamily:
    """One architecture.

    Attributes:
        hub: its class on the hub, config.json's `architectures`.
        model_type: config.json's `model_type`.
        layers: tensors of a layer, the file's name → the hub's.
        keys: config.json's keys that must be in the file → the file's.
        optional: keys that may be missing, and then are the family's default.
        fixed: keys that the file doesn't hold, since the architecture implies them.
        outside, layer_prefix: where tensors lie that belong to no layer, and those that do.
        interleaved: query and key rows lie in llama.cpp's order.
        shifted_norms: norms were stored as 1 + weight.
        transposed: tensors that the hub holds as (n_in, n_out).
        has_heads: whether head_dim and rotary keys belong into its config.
    """

    hub: str
    model_type: str
    layers: Mapping[str, str] = field(default_factory=lambda: LAYER)
    keys: Mapping[str, str] = field(default_factory=lambda: {**SIZES, **HIDDEN, **RMS})
    optional: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    outside: Mapping[str, str] = field(default_factory=lambda: OUTSIDE)
    layer_prefix: str = "model.layers"
    interleaved: bool = False
    shifted_norms: bool = False
    transposed: frozenset[str] = frozenset()
    has_heads: bool = True


SILU = {"hidden_act": "silu"}
GEMMA_ACT = {"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh"}
MOE_KEYS = {**SIZES, **RMS, **EXPERT_SIZES}

FAMILIES: dict[str, GGUFFamily] = {
    "llama": GGUFFamily("LlamaForCausalLM", "llama", fixed=SILU, interleaved=True),
    # What calls itself llama and has a window, or experts.
    "llama/window": GGUFFamily(
        "MistralForCausalLM", "mistral", optional=WINDOW, fixed=SILU, interleaved=True
    ),
    "llama/experts": GGUFFamily(
        "MixtralForCausalLM",
        "mixtral",
        layers={
            **NORMS,
            **ATTENTION,
            "ffn_gate_inp": "block_sparse_moe.gate",
            "ffn_gate_exps": "block_sparse_moe.experts.{e}.w1",
            "ffn_down_exps": "block_sparse_moe.experts.{e}.w2",
            "ffn_up_exps": "block_sparse_moe.experts.{e}.w3",
        },
        keys={
            **SIZES,
            **HIDDEN,
            **RMS,
            "num_local_experts": "expert_count",
            "num_experts_per_tok": "expert_used_count",
        },
        optional=WINDOW,
        fixed=SILU,
        interleaved=True,
    ),
    "qwen2": GGUFFamily("Qwen2ForCausalLM", "qwen2", fixed={**SILU, "use_sliding_window": False}),
    "qwen3": GGUFFamily(
        "Qwen3ForCausalLM",
        "qwen3",
        layers={**LAYER, **QK_NORMS},
        fixed={**SILU, "use_sliding_window": False, "attention_bias": False},
    ),
    "qwen3moe": GGUFFamily(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        layers={**NORMS, **ATTENTION, **QK_NORMS, **EXPERTS},
        keys=MOE_KEYS,
        optional={"intermediate_size": "feed_forward_length"},
        fixed={
            **SILU,
            "use_sliding_window": False,
            "attention_bias": False,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
    ),
    "olmoe": GGUFFamily(
        "OlmoeForCausalLM",
        "olmoe",
        layers={**NORMS, **ATTENTION, **QK_NORMS, **EXPERTS},
        keys={
            **SIZES,
            **HIDDEN,
            **RMS,
            "num_experts": "expert_count",
            "num_experts_per_tok": "expert_used_count",
        },
        fixed={**SILU, "norm_topk_prob": False},
    ),
    "olmo2": GGUFFamily(
        "Olmo2ForCausalLM",
        "olmo2",
        layers={**ATTENTION, **MLP, **QK_NORMS, **NORMS_BEHIND},
        fixed=SILU,
    ),
    "gemma": GGUFFamily("GemmaForCausalLM", "gemma", fixed=GEMMA_ACT, shifted_norms=True),
    "gemma2": GGUFFamily(
        "Gemma2ForCausalLM",
        "gemma2",
        layers={**ATTENTION, **MLP, **GEMMA_NORMS},
        optional={
            **WINDOW,
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        fixed=GEMMA_ACT,
        shifted_norms=True,
    ),
    "gemma3": GGUFFamily(
        "Gemma3ForCausalLM",
        "gemma3_text",
        layers={**ATTENTION, **MLP, **GEMMA_NORMS, **QK_NORMS},
        optional={**WINDOW, "final_logit_softcapping": "final_logit_softcapping"},
        # Five layers with a window to one without; the former keep their first rotary base.
        fixed={**GEMMA_ACT, "sliding_window_pattern": 6, "rope_local_base_freq": 10_000.0},
        shifted_norms=True,
    ),
    "phi3": GGUFFamily(
        "Phi3ForCausalLM",
        "phi3",
        layers={
            **NORMS,
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
        optional=WINDOW,
        fixed=SILU,
    ),
    "granite": GGUFFamily(
        "GraniteForCausalLM",
        "granite",
        optional={
            "attention_multiplier": "attention.scale",
            "embedding_multiplier": "embedding_scale",
            "residual_multiplier": "residual_scale",
            "logits_scaling": "logit_scale",
        },
        fixed=SILU,
        interleaved=True,
    ),
    "smollm3": GGUFFamily(
        "SmolLM3ForCausalLM",
        "smollm3",
        fixed={**SILU, "no_rope_layer_interval": 4, "use_sliding_window": False},
        interleaved=True,
    ),
    "starcoder2": GGUFFamily(
        "Starcoder2ForCausalLM",
        "starcoder2",
        layers={**NORMS, **ATTENTION, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        keys={**SIZES, **HIDDEN, **LAYER_NORM},
        fixed={"hidden_act": "gelu_pytorch_tanh", "use_bias": True, "sliding_window": None},
    ),
    "gpt2": GGUFFamily(
        "GPT2LMHeadModel",
        "gpt2",
        layers={
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        keys={
            "n_embd": "embedding_length",
            "n_layer": "block_count",
            "n_head": "attention.head_count",
            "n_positions": "context_length",
            "n_inner": "feed_forward_length",
            "layer_norm_epsilon": "attention.layer_norm_epsilon",
        },
        fixed={"activation_function": "gelu_new"},
        outside={
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        layer_prefix="transformer.h",
        transposed=frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),
        has_heads=False,
    ),
}
