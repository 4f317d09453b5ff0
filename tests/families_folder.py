"""Small configurations of every family, all special features on, for seeded checkpoints.

No two lengths of a family are the same where that can be, so that no axis can be taken for another;
windows are shorter than the prompts of the tests.
"""

from __future__ import annotations

from typing import Any

BASE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
        "original_max_position_embeddings": 32}  # fmt: skip
SHORT = [1.0 + 0.05 * i for i in range(8)]
LONG = [1.5 + 0.5 * i for i in range(8)]
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": SHORT, "long_factor": LONG,
            "original_max_position_embeddings": 32}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2}

# name → (model_type, changes to BASE)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"head_dim": 24}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0,
                                                   "rope_theta": 1e4}}),
    "llama dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 3.0,
                                                    "rope_theta": 1e4}}),
    "llama llama3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 32}),
    "llama yarn": ("llama", {"rope_parameters": YARN}),
    "llama yarn tuned": ("llama", {"rope_parameters": {
        **YARN, "beta_fast": 20.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 1.1,
        "truncate": False}}),
    "llama longrope": ("llama", {"rope_parameters": LONGROPE}),
    "mistral": ("mistral", {"sliding_window": 7}),
    "mistral whole": ("mistral", {"sliding_window": None, "head_dim": 24}),
    "ministral": ("ministral", {"sliding_window": 7, "head_dim": 16, "layer_types": [
        "sliding_attention", "full_attention", "full_attention", "sliding_attention"]}),
    "ministral3": ("ministral3", {"head_dim": 16, "rope_parameters": {
        **YARN, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.3}}),
    "qwen2": ("qwen2", {}),
    "qwen2 window": ("qwen2", {"use_sliding_window": True, "sliding_window": 6,
                               "max_window_layers": 2}),
    "qwen3": ("qwen3", {"head_dim": 24, "tie_word_embeddings": True}),
    "qwen3 biases": ("qwen3", {"head_dim": 24, "attention_bias": True}),
    "qwen3_moe": ("qwen3_moe", {"head_dim": 24, "num_experts": 6, "moe_intermediate_size": 40,
                                "mlp_only_layers": [1], "norm_topk_prob": True, **EXPERTS}),
    "qwen3_moe softmax": ("qwen3_moe", {"head_dim": 24, "num_experts": 6,
                                        "moe_intermediate_size": 40, "decoder_sparse_step": 2,
                                        "norm_topk_prob": False, **EXPERTS}),
    "mixtral": ("mixtral", {"num_local_experts": 5, "sliding_window": 9, **EXPERTS}),
    "olmoe": ("olmoe", {"num_experts": 6, "clip_qkv": 0.8, **EXPERTS}),
    "gpt_oss": ("gpt_oss", {"num_local_experts": 6, "head_dim": 24, "sliding_window": 5,
                            "swiglu_limit": 1.5, "rope_parameters": {**YARN, "truncate": False},
                            **EXPERTS}),
    "gemma": ("gemma", {"head_dim": 24, "tie_word_embeddings": True}),
    "gemma2": ("gemma2", {"head_dim": 24, "query_pre_attn_scalar": 40, "sliding_window": 6,
                          "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0,
                          "tie_word_embeddings": True}),
    "gemma3": ("gemma3_text", {"head_dim": 24, "query_pre_attn_scalar": 40, "sliding_window": 6,
                               "layer_types": ["sliding_attention", "full_attention"] * 2,
                               "tie_word_embeddings": True, "rope_parameters": {
                                   "full_attention": {"rope_type": "linear", "factor": 8.0,
                                                      "rope_theta": 1e6},
                                   "sliding_attention": {"rope_type": "default",
                                                         "rope_theta": 1e4}}}),
    "phi3": ("phi3", {"sliding_window": 20}),
    "phi3 longrope": ("phi3", {"partial_rotary_factor": 0.75, "hidden_size": 128,
                               "num_attention_heads": 4, "original_max_position_embeddings": 32,
                               "rope_parameters": {
                                   "rope_type": "longrope", "rope_theta": 1e4,
                                   "partial_rotary_factor": 0.75,
                                   "short_factor": [1.0 + 0.05 * i for i in range(12)],
                                   "long_factor": [1.5 + 0.5 * i for i in range(12)],
                                   "original_max_position_embeddings": 32}}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2, "use_sliding_window": True,
                            "sliding_window": 8}),
    "olmo": ("olmo", {"clip_qkv": 0.6}),
    "olmo2": ("olmo2", {"attention_bias": True}),
    "olmo3": ("olmo3", {"sliding_window": 6, "rope_parameters": {
        "full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 5e5}}}),
    "granite": ("granite", {"embedding_multiplier": 3.0, "attention_multiplier": 0.3,
                            "residual_multiplier": 0.6, "logits_scaling": 4.0,
                            "attention_bias": True, "mlp_bias": True}),
    "stablelm": ("stablelm", {"use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    "stablelm parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True,
                                       "partial_rotary_factor": 0.25}),
    "starcoder2": ("starcoder2", {"sliding_window": 8, "use_bias": True}),
    "cohere": ("cohere", {"use_qk_norm": True, "logit_scale": 0.3, "attention_bias": True}),
    "cohere2": ("cohere2", {"sliding_window": 6, "logit_scale": 0.3, "attention_bias": True}),
    "glm": ("glm", {"head_dim": 24, "attention_bias": True, "partial_rotary_factor": 0.5}),
    "glm4": ("glm4", {"head_dim": 24, "attention_bias": True, "partial_rotary_factor": 0.5}),
    "exaone4": ("exaone4", {"sliding_window": 6, "sliding_window_pattern": 2}),
    "exaone4 whole": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64, "n_inner": 80,
                      "vocab_size": 97}),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.25, "num_key_value_heads": None}),
    "gpt_neox serial": ("gpt_neox", {"num_key_value_heads": None,
                                     "use_parallel_residual": False, "attention_bias": False}),
    "phi": ("phi", {"qk_layernorm": True}),
    "phi plain": ("phi", {}),
    "arcee": ("arcee", {"mlp_bias": True, "head_dim": 24}),
    "ernie4_5": ("ernie4_5", {"head_dim": 24, "use_bias": True}),
    "hunyuan": ("hunyuan_v1_dense", {"head_dim": 24, "attention_bias": True}),
    "hunyuan alpha": ("hunyuan_v1_dense", {"head_dim": 24, "rope_parameters": {
        "rope_type": "dynamic", "rope_theta": 1e4, "alpha": 50.0, "factor": 1.0}}),
    "nemotron": ("nemotron", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    "apertus": ("apertus", {"attention_bias": True}),
}  # fmt: skip


def config_keys(name: str) -> tuple[str, dict[str, Any]]:
    """A family's model type, and the keys of its configuration."""
    model_type, changes = FAMILIES[name]
    return model_type, changes if model_type == "gpt2" else {**BASE, **changes}
