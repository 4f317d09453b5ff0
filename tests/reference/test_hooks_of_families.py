"""Hook points of every family against the reference's modules, in float64 on seeded checkpoints.

What a family computes in a module of its own is listened to there; rotary, scores and pattern are
functions, caught as they are called. `test_hooks_against_torch.py` has the real model.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.families_folder import FAMILIES
from tinyllm.config import ModelConfig
from tinyllm.inside.points import hook_points
from tinyllm.model import Model
from tinyllm.weights import load_weights

pytestmark = pytest.mark.reference

N = 12  # tokens: more than any window of the small configurations but two
LAYERS = ("model.layers", "transformer.h", "gpt_neox.layers")
# Under which names a part goes, the first that is there; "<" listens to what a module is given.
EMBED = ("model.embed_tokens", "transformer.wte", "gpt_neox.embed_in")
FINAL = ("model.norm", "model.final_layernorm", "transformer.ln_f", "gpt_neox.final_layer_norm")
NORM_1 = ("input_layernorm", "ln_1", "attention_layernorm")
OUT = ("self_attn.o_proj", "self_attn.dense", "attn.c_proj", "attention.dense")
DOWN = ("mlp.down_proj", "mlp.fc2", "mlp.c_proj", "mlp.dense_4h_to_h")
GATE = ("mlp.gate_proj",)
UP = ("mlp.up_proj", "mlp.fc1", "mlp.c_fc", "mlp.dense_h_to_4h")
FUSED = ("self_attn.qkv_proj", "attn.c_attn", "attention.query_key_value")
NORMS = {
    "q": ("self_attn.q_norm", "self_attn.q_layernorm", "self_attn.query_layernorm"),
    "k": ("self_attn.k_norm", "self_attn.k_layernorm", "self_attn.key_layernorm"),
}
# What stands between a part's last product and the residual stream, or before the MLP.
AFTER_ATTENTION = ("post_self_attn_layernorm", "post_attention_layernorm")
AFTER_MLP = ("post_mlp_layernorm", "post_feedforward_layernorm")
BEFORE_MLP = ("pre_feedforward_layernorm", "post_attention_layernorm", "feedforward_layernorm",
              "ln_2")  # fmt: skip

# What the reference has nowhere as an array of its own: Gemma's embedding before it is scaled (the
# first layer's input is seen), half-turned heads that are put together later, gpt-oss's scores
# without their sink; and of experts all but what comes out of them together: it goes through them
# an expert at a time, and not a token.
ROTARY = {"attn.hook_rot_q", "attn.hook_rot_k"}
EXPERTS = {"mlp.hook_router", "mlp.hook_expert_weights"} | {
    f"mlp.experts.hook_{name}" for name in ("pre", "pre_linear", "post", "out")
}
UNSEEN = {
    "gemma": {"hook_embed"}, "gemma2": {"hook_embed"}, "gemma3_text": {"hook_embed"},
    "stablelm": ROTARY, "phi": ROTARY,
    "gpt_oss": {"attn.hook_attn_scores", "attn.hook_pattern"},
}  # fmt: skip


def reference() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tests.reference import families
    return families


class Listener:
    """Keeps what modules are given and give, under our names."""

    def __init__(self, model: Any, config: ModelConfig) -> None:
        self.found: dict[str, np.ndarray] = {}
        self._config, self._handles = config, []
        self._modules = dict(model.named_modules())
        self._listen_to_all()

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _at(self, names: tuple[str, ...], prefix: str = "") -> Any:
        dotted = (f"{prefix}.{name}" if prefix else name for name in names)
        return next((self._modules[name] for name in dotted if name in self._modules), None)

    def _keep(
        self,
        module: Any,
        change: Callable[[np.ndarray], dict[str, np.ndarray]],
        given: bool = False,
    ) -> None:
        if module is None:
            return

        def hook(module: Any, args: Any, kwargs: Any, output: Any = None) -> None:
            value = (args[0] if args else kwargs["hidden_states"]) if given else output
            value = value[0] if isinstance(value, tuple) else value
            array = value.detach().numpy().copy()  # some clip it in place
            self.found |= change(array[0] if array.ndim == 3 else array)

        register = module.register_forward_pre_hook if given else module.register_forward_hook
        self._handles.append(register(hook, with_kwargs=True))

    def _listen_to_all(self) -> None:
        cfg = self._config
        scale = cfg.residual_scale
        if not cfg.family.startswith("gemma"):
            self._keep(self._at(EMBED), lambda x: {"hook_embed": x * cfg.embedding_scale})
        self._keep(self._at(FINAL), lambda x: {"ln_final.hook_normalized": x})
        for i in range(cfg.n_layers):
            block = next(f"{name}.{i}" for name in LAYERS if f"{name}.{i}" in self._modules)
            at = f"blocks.{i}"

            def named(suffix: str, by: float = 1.0, at: str = at) -> Any:
                return lambda x: {f"{at}.{suffix}": x * by}

            def heads(suffix: str, n: int, at: str = at) -> Any:
                return lambda x: {f"{at}.attn.{suffix}": x.reshape(len(x), n, cfg.head_dim)}

            self._keep(self._modules[block], named("hook_resid_pre"), given=True)
            self._keep(self._modules[block], named("hook_resid_post"))
            if cfg.norm_before:
                self._keep(self._at(NORM_1, block), named("ln1.hook_normalized"))
            for letter, n in (("q", cfg.n_heads), ("k", cfg.n_kv_heads), ("v", cfg.n_kv_heads)):
                module = self._at((f"self_attn.{letter}_proj",), block)
                self._keep(module, heads(f"hook_{letter}", n))
            for letter, n in (("q", cfg.n_heads), ("k", cfg.n_kv_heads)):
                self._keep(self._at(NORMS[letter], block), self._normed(f"{at}.attn.{letter}", n))
            self._keep(self._at(FUSED, block), self._split(at))
            self._keep(self._at(OUT, block), heads("hook_z", cfg.n_heads), given=True)
            attn_out = self._at(AFTER_ATTENTION if cfg.norm_after else OUT, block)
            self._keep(attn_out, named("hook_attn_out", scale))
            if cfg.norm_before and cfg.parallel != "one norm":
                self._keep(self._at(BEFORE_MLP, block), named("ln2.hook_normalized"))
            if cfg.parallel == "no":
                reads = BEFORE_MLP if cfg.norm_before else ("mlp",)
                self._keep(self._at(reads, block), named("hook_resid_mid"), given=True)
            self._keep(self._at(("mlp.gate_up_proj",), block), self._halves(at))
            if cfg.layer(i).experts:
                whole = ("mlp", "block_sparse_moe")
                self._keep(self._at(whole, block), named("hook_mlp_out", scale))
                continue
            first = GATE if cfg.gated else UP
            self._keep(self._at(first, block), named("mlp.hook_pre"))
            if cfg.gated:
                self._keep(self._at(UP, block), named("mlp.hook_pre_linear"))
            self._keep(self._at(DOWN, block), named("mlp.hook_post"), given=True)
            mlp_out = self._at(AFTER_MLP if cfg.norm_after else DOWN, block)
            self._keep(mlp_out, named("hook_mlp_out", scale))

    def _normed(self, at: str, n: int) -> Any:
        def normed(x: np.ndarray) -> dict[str, np.ndarray]:
            x = x[0] if x.ndim == 4 else x
            if x.ndim == 3 and x.shape[:2] == (n, N):
                x = x.swapaxes(0, 1)  # some norm the heads behind one another
            return {f"{at}_norm.hook_normalized": x.reshape(N, n, -1)}

        return normed

    def _split(self, at: str) -> Any:
        cfg = self._config
        n, n_kv = cfg.n_heads, cfg.n_kv_heads

        def split(x: np.ndarray) -> dict[str, np.ndarray]:
            if cfg.family == "gpt_neox":  # q, k, v of one head, then of the next
                q, k, v = np.moveaxis(x.reshape(len(x), n, 3, cfg.head_dim), 2, 0)
            else:
                rows = x.reshape(len(x), -1, cfg.head_dim)
                q, k, v = rows[:, :n], rows[:, n : n + n_kv], rows[:, n + n_kv :]
            return {f"{at}.attn.hook_{a}": b for a, b in zip("qkv", (q, k, v), strict=True)}

        return split

    def _halves(self, at: str) -> Any:
        def halves(x: np.ndarray) -> dict[str, np.ndarray]:
            gate, up = np.split(x, 2, -1)
            return {f"{at}.mlp.hook_pre": gate, f"{at}.mlp.hook_pre_linear": up}

        return halves


def run(model: Any, ids: list[int], config: ModelConfig) -> dict[str, np.ndarray]:
    """What the reference computes at our hook points, as far as it can be caught."""
    import torch

    listener = Listener(model, config)
    found = listener.found
    modeling = sys.modules[type(model).__module__]
    turned = iter([i for i in range(config.n_layers) if config.layer(i).rotary != "none"])
    scored = iter(range(config.n_layers))
    plain_softmax = torch.nn.functional.softmax
    plain_rope = getattr(modeling, "apply_rotary_pos_emb", None)

    def rope(*args: Any, **kwargs: Any) -> Any:
        q, k = plain_rope(*args, **kwargs)
        layer = next(turned)
        if q.shape[-1] == config.head_dim:  # else a part of each head
            found[f"blocks.{layer}.attn.hook_rot_q"] = q[0].transpose(0, 1).detach().numpy()
            found[f"blocks.{layer}.attn.hook_rot_k"] = k[0].transpose(0, 1).detach().numpy()
        return q, k

    def softmax(scores: Any, *args: Any, **kwargs: Any) -> Any:
        pattern = plain_softmax(scores, *args, **kwargs)
        if scores.ndim == 4 and not config.sinks:
            layer = next(scored)
            found[f"blocks.{layer}.attn.hook_attn_scores"] = scores[0].detach().numpy()
            found[f"blocks.{layer}.attn.hook_pattern"] = pattern[0].detach().numpy()
        return pattern

    torch.nn.functional.softmax = softmax
    if plain_rope is not None:
        modeling.apply_rotary_pos_emb = rope
    try:
        with torch.no_grad():
            model(torch.tensor([ids]), use_cache=False)
    finally:
        torch.nn.functional.softmax = plain_softmax
        if plain_rope is not None:
            modeling.apply_rotary_pos_emb = plain_rope
        listener.close()
    return dict(found)


@pytest.mark.parametrize("name", FAMILIES)
def test_hook_points(name: str, tmp_path: Path) -> None:
    """Every point that the reference shows, to 1e-5 of its magnitude; few may stay unseen."""
    import torch
    import transformers

    theirs = reference()
    theirs.save(theirs.seeded(name), tmp_path)
    config = ModelConfig.from_folder(tmp_path)
    weights = {k: v.astype(np.float64) for k, v in load_weights(tmp_path, config).items()}
    model = Model(config, weights)
    ids = np.random.default_rng(1).integers(3, 97, N).tolist()
    expected = run(
        transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, dtype=torch.float64, attn_implementation="eager",
            experts_implementation="eager",
        ).eval(),
        ids,
        config,
    )  # fmt: skip
    ours: dict[str, np.ndarray] = {}

    def tap(point: str, array: np.ndarray) -> np.ndarray:
        ours[point] = array
        return array

    model.forward(ids, model.new_cache(N), tap=tap)
    gaps = {}
    for point, want in expected.items():
        assert point in ours, f"{point} is no point of this family"
        got = ours[point]
        assert got.shape == want.shape, (point, got.shape, want.shape)
        if point.endswith("attn_scores"):  # hidden ones are -inf here, the lowest float there
            seen = ~np.isneginf(got)
            assert (want[~seen] < -1e30).all(), point
            got, want = got[seen], want[seen]
        gaps[point] = float(np.abs(got - want).max() / np.abs(want).max())
    worst = max(gaps, key=gaps.__getitem__)
    assert gaps[worst] <= 1e-5, (worst, gaps[worst])
    unseen = {point.kind.suffix for point in hook_points(config)} - {
        point.kind.suffix for point in hook_points(config) if point.name in expected
    }
    hidden = EXPERTS if any(config.layer(i).experts for i in range(config.n_layers)) else set()
    assert unseen <= UNSEEN.get(config.family, set()) | hidden, unseen
