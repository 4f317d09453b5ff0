"""Every hook point against forward hooks on the reference Llama, on the real weights.

The reference runs in float64, so that the gaps are ours alone: its own float32 run is up to 5e-6
off, and two float32 runs may differ by the sum (1.04e-5 has been seen on the third prompt).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyllm
from tinyllm.inside.points import hook_points
from tinyllm.lm import LM

pytestmark = pytest.mark.reference

PROMPTS = [
    "The capital of France is",
    "def shortest_path(grid, start):\n    queue = [(start, 0)]\n    while queue:",
    "In 1742 the keeper counted 412 ships; 🙂 東京 naïve — and then?",
    [{"role": "user", "content": "Write one sentence about the sea."}],
]


@pytest.fixture(scope="module")
def lm(weights_folder: Path) -> LM:
    return tinyllm.load(weights_folder)


@pytest.fixture(scope="module")
def reference(weights_folder: Path) -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaForCausalLM.from_pretrained(
        weights_folder, dtype=torch.float64, attn_implementation="eager", gguf_file="model.gguf"
    ).eval()


def recorded(model: Any, ids: list[int]) -> dict[str, np.ndarray]:
    """The same places of the reference, under our names."""
    import torch
    from transformers.models.llama import modeling_llama as llama

    cfg = model.config
    n_heads, n_kv, hd = cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
    found: dict[str, torch.Tensor] = {}
    handles = []

    def keep(name: str, module: Any, of: str = "output", view: Any = None) -> None:
        def hook(module: Any, args: Any, kwargs: Any, output: Any = None) -> None:
            value = output if of == "output" else args[0] if args else kwargs["hidden_states"]
            value = value[0] if isinstance(value, tuple) else value
            found[name] = value[0] if view is None else value[0].reshape(len(ids), *view)

        if of == "output":
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
        else:
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    keep("hook_embed", model.model.embed_tokens)
    keep("ln_final.hook_normalized", model.model.norm)
    for i, block in enumerate(model.model.layers):
        at = f"blocks.{i}"
        keep(f"{at}.hook_resid_pre", block, "input")
        keep(f"{at}.ln1.hook_normalized", block.input_layernorm)
        keep(f"{at}.attn.hook_q", block.self_attn.q_proj, view=(n_heads, hd))
        keep(f"{at}.attn.hook_k", block.self_attn.k_proj, view=(n_kv, hd))
        keep(f"{at}.attn.hook_v", block.self_attn.v_proj, view=(n_kv, hd))
        keep(f"{at}.attn.hook_z", block.self_attn.o_proj, "input", view=(n_heads, hd))
        keep(f"{at}.hook_attn_out", block.self_attn.o_proj)
        keep(f"{at}.hook_resid_mid", block.post_attention_layernorm, "input")
        keep(f"{at}.ln2.hook_normalized", block.post_attention_layernorm)
        keep(f"{at}.mlp.hook_pre", block.mlp.gate_proj)
        keep(f"{at}.mlp.hook_pre_linear", block.mlp.up_proj)
        keep(f"{at}.mlp.hook_post", block.mlp.down_proj, "input")
        keep(f"{at}.hook_mlp_out", block.mlp.down_proj)
        keep(f"{at}.hook_resid_post", block)

    # Rotary, scores and softmax are functions, not modules: listen to them as they are called.
    layer = 0
    plain_rope, plain_softmax = llama.apply_rotary_pos_emb, torch.nn.functional.softmax

    def rope(*args: Any, **kwargs: Any) -> Any:
        q, k = plain_rope(*args, **kwargs)
        found[f"blocks.{layer}.attn.hook_rot_q"] = q[0].transpose(0, 1)
        found[f"blocks.{layer}.attn.hook_rot_k"] = k[0].transpose(0, 1)
        return q, k

    def softmax(scores: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal layer
        pattern = plain_softmax(scores, *args, **kwargs)
        found[f"blocks.{layer}.attn.hook_attn_scores"] = scores[0]
        found[f"blocks.{layer}.attn.hook_pattern"] = pattern[0]
        layer += 1
        return pattern

    llama.apply_rotary_pos_emb, torch.nn.functional.softmax = rope, softmax
    try:
        with torch.no_grad():
            model(torch.tensor([ids]))
    finally:
        llama.apply_rotary_pos_emb, torch.nn.functional.softmax = plain_rope, plain_softmax
        for handle in handles:
            handle.remove()
    return {name: value.detach().numpy() for name, value in found.items()}


@pytest.mark.parametrize("prompt", PROMPTS, ids=["prose", "code", "unicode", "chat"])
def test_every_hook_point_is_the_references(lm: LM, reference: Any, prompt: Any) -> None:
    ids = lm.encode_prompt(prompt)
    theirs = recorded(reference, ids)
    _, ours = lm.run_with_cache(ids)
    assert set(theirs) == {p.name for p in hook_points(lm.config)}
    gaps = {}
    for name, expected in theirs.items():
        got = ours[name]
        assert got.shape == expected.shape, name
        if name.endswith("attn_scores"):  # hidden ones are -inf here, and the lowest float there
            hidden = np.isneginf(got)
            assert (expected[hidden] < -1e30).all()
            got, expected = got[~hidden], expected[~hidden]
        gaps[name] = np.abs(got - expected).max() / np.abs(expected).max()
    worst = max(gaps, key=gaps.__getitem__)
    assert gaps[worst] <= 1e-5, (worst, gaps[worst])
