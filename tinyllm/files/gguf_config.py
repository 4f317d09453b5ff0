"""A GGUF file's hyperparameters as a config.json of the hub's.

Every key of the file's architecture is either taken over, or known to change nothing, or the file
is refused: a multiplier that is passed over would make wrong numbers in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinyllm.errors import FetchError
from tinyllm.files.blocks import values
from tinyllm.files.gguf import GGUF
from tinyllm.files.gguf_families import FAMILIES, GGUFFamily

# Keys that say what the tensors say, or what only a converter wants to know.
HARMLESS = {
    "vocab_size",
    "attention.head_count",
    "rope.dimension_count",
    "rope.scaling.finetuned",
    "feed_forward_length",
    "expert_feed_forward_length",
    "expert_group_count",
    "expert_group_used_count",
    "attention.sliding_window_pattern",
}
# Where a key that the architecture implies has the value that is implied.
IMPLIED = {
    "attention.causal": True,
    "use_parallel_residual": False,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.0,
    "attention.clamp_kqv": 0.0,
    "expert_shared_count": 0,
    "leading_dense_block_count": 0,
}
# How Llama 3.1 and 3.2 stretch their frequencies; a file has the factors that come of it.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA3_FACTORS = (8.0, 32.0)


class Hyperparameters:
    """The metadata of one architecture, which remembers what was asked for."""

    def __init__(self, gguf: GGUF, architecture: str) -> None:
        self._gguf = gguf
        self._prefix = f"{architecture}."
        self._asked: set[str] = set()

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """A value by its key behind the architecture's name; `FetchError` names a bad one."""
        self._asked.add(key)
        return get(self._gguf, self._prefix + key, kind, default)

    def find(self, key: str) -> Any:
        """A number as it is, floats with the decimals they were written with; or None."""
        self._asked.add(key)
        value = self._gguf.metadata.get(self._prefix + key)
        return shortest(value) if isinstance(value, float) else value

    def refuse_the_rest(self) -> None:
        """Raise `FetchError` on a key that nobody asked for and that could change the numbers."""
        for key, value in self._gguf.metadata.items():
            name = key.removeprefix(self._prefix)
            if name == key or name in self._asked | HARMLESS or IMPLIED.get(name) == value:
                continue
            raise FetchError(
                f"{self._gguf.path} sets {key} to {value!r:.60}, which tinyllm does not know: its "
                "numbers would be wrong. Fetch the model's own folder (hf:OWNER/NAME) instead"
            )


# The file has no key for the scale of Gemma's scores. It is 1 / √head_dim in all sizes but the 27B,
# which llama.cpp knows by its layers, and where it is 1 / √(hidden_size / n_heads).
GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3_text": 62}


def family_of(gguf: GGUF) -> GGUFFamily:
    """The row of `FAMILIES` that a file is of. Raises `FetchError` by name where there is none."""
    architecture = get(gguf, "general.architecture", str)
    if architecture == "llama" and gguf.metadata.get("llama.expert_count", 0):
        architecture = "llama/experts"
    elif architecture == "llama" and gguf.metadata.get("llama.attention.sliding_window", 0):
        architecture = "llama/window"
    family = FAMILIES.get(architecture)
    if family is None:
        known = ", ".join(name for name in FAMILIES if "/" not in name)
        raise FetchError(
            f"{gguf.path} holds a {architecture!r} model; GGUF files of {known} are read"
        )
    return family


def hub_config(gguf: GGUF) -> dict[str, Any]:
    """The config.json of the checkpoint that the file was made from."""
    family = family_of(gguf)
    found = Hyperparameters(gguf, get(gguf, "general.architecture", str))
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None:
        raise FetchError(f"{gguf.path} has no tensor 'token_embd.weight'")
    config: dict[str, Any] = {
        "architectures": [family.hub],
        "model_type": family.model_type,
        "torch_dtype": "float32",
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        **family.fixed,
    }
    for key, name in family.keys.items():
        kind = float if key.endswith(("eps", "epsilon")) else int
        value = found.get(name, kind)
        config[key] = shortest(value) if kind is float else value
    for key, name in family.optional.items():
        if (value := found.find(name)) is not None:
            config[key] = value or None if key == "sliding_window" else value
    if family.has_heads:
        config |= _attention(gguf, found, config)
    _check_layers(gguf, config)
    found.refuse_the_rest()
    return config | _token_ids(gguf)


def _attention(gguf: GGUF, found: Hyperparameters, config: Mapping[str, Any]) -> dict[str, Any]:
    """Heads, rotary positions, biases."""
    n_heads = config["num_attention_heads"]
    head_dim = found.get("attention.key_length", int, config["hidden_size"] // n_heads)
    if found.get("attention.value_length", int, head_dim) != head_dim:
        raise FetchError(f"{gguf.path}: values of another length than keys are not run here")
    keys: dict[str, Any] = {
        "num_key_value_heads": found.get("attention.head_count_kv", int, n_heads),
        "head_dim": head_dim,
        "rope_theta": shortest(found.get("rope.freq_base", float, 10000.0)),
        "rope_scaling": _rope_scaling(gguf, found, config, head_dim),
    }
    rotary = found.get("rope.dimension_count", int, head_dim)
    if rotary != head_dim:
        keys["partial_rotary_factor"] = rotary / head_dim
    if "blk.0.attn_q.bias" in gguf.tensors and config["model_type"] in ("llama", "granite"):
        keys["attention_bias"] = True
    if "blk.0.ffn_up.bias" in gguf.tensors and config["model_type"] in ("llama", "granite"):
        keys["mlp_bias"] = True
    if (largest := GEMMA_27B_LAYERS.get(config["model_type"])) is not None:
        by_width = config["num_hidden_layers"] == largest
        scalar = config["hidden_size"] // n_heads if by_width else head_dim
        keys["query_pre_attn_scalar"] = scalar
    if config["model_type"] == "phi3":
        keys["original_max_position_embeddings"] = (
            found.find("rope.scaling.original_context_length") or config["max_position_embeddings"]
        )
    if "rope_local_base_freq" in config and (base := found.find("rope.freq_base_swa")):
        keys["rope_local_base_freq"] = base
    return keys


def _rope_scaling(
    gguf: GGUF, found: Hyperparameters, config: Mapping[str, Any], head_dim: int
) -> dict[str, Any] | None:
    """How rotary frequencies are stretched: by keys, or by tensors of factors."""
    kind = found.find("rope.scaling.type")
    factor = found.find("rope.scaling.factor") or found.find("rope.scale_linear")
    original = found.find("rope.scaling.original_context_length")
    attention = found.find("rope.scaling.attn_factor")
    if "rope_factors_long.weight" in gguf.tensors:
        long, short = (_vector(gguf, f"rope_factors_{name}.weight") for name in ("long", "short"))
        return {
            "rope_type": "longrope",
            "long_factor": [shortest(value) for value in long.tolist()],
            "short_factor": [shortest(value) for value in short.tolist()],
            "original_max_position_embeddings": original,
            **({} if attention is None else {"attention_factor": attention}),
        }
    if "rope_freqs.weight" in gguf.tensors:
        theta = found.get("rope.freq_base", float, 10000.0)
        return _llama3(gguf, theta, head_dim)
    if kind == "linear" or (kind is None and factor not in (None, 1.0)):
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        scaling = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
        }
        for key, name in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            if (value := found.find(f"rope.scaling.{name}")) is not None:
                scaling[key] = value
        return scaling
    if kind not in (None, "none"):
        raise FetchError(f"{gguf.path} scales its rotary positions by {kind!r}: not run here")
    return None


def _llama3(gguf: GGUF, theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3's scaling from the factors that a file holds, one a rotary pair."""
    stored = _vector(gguf, "rope_freqs.weight")
    for factor in LLAMA3_FACTORS:
        if stored.shape == (head_dim // 2,) and np.allclose(
            stored, llama3_factors(theta, head_dim, factor), rtol=1e-5
        ):
            return {"rope_type": "llama3", "factor": factor, **LLAMA3}
    factors = [shortest(value) for value in stored.tolist()]
    # Any other factors: longrope's formula, with the same ones for long texts and short ones.
    return {
        "rope_type": "longrope",
        "long_factor": factors,
        "short_factor": factors,
        "attention_factor": 1.0,
        "original_max_position_embeddings": get(gguf, "llama.context_length", int),
    }


def llama3_factors(theta: float, head_dim: int, factor: float) -> np.ndarray[Any, Any]:
    """By what each frequency is divided, (head_dim / 2,): as llama.cpp's conversion/llama.py."""
    frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2) / head_dim)
    wavelengths = 2 * np.pi / frequencies
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    context = LLAMA3["original_max_position_embeddings"]
    smooth = (context / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelengths > context / low, factor, between)
    return np.where(wavelengths < context / high, 1.0, factors)


def _vector(gguf: GGUF, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    info = gguf.tensors.get(name)
    if info is None:
        raise FetchError(f"{gguf.path} has no tensor {name!r}")
    return np.array(values(gguf.raw(name), info.type, info.shape))


def _check_layers(gguf: GGUF, config: Mapping[str, Any]) -> None:
    wanted = config.get("num_hidden_layers", config.get("n_layer"))
    found = len({name.split(".")[1] for name in gguf.tensors if name.startswith("blk.")})
    if found != wanted:
        raise FetchError(f"{gguf.path} should have {wanted} layers by its block_count, not {found}")


def _token_ids(gguf: GGUF) -> dict[str, Any]:
    """Ids by role. Ends of a turn and of a text are ends alike."""
    ids: dict[str, Any] = {}
    for role, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        if (token := gguf.metadata.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            ids[f"{role}_token_id"] = token
    ends = [
        token
        for name in ("eos", "eot", "eom")
        if (token := gguf.metadata.get(f"tokenizer.ggml.{name}_token_id")) is not None
    ]
    if len(set(ends)) > 1:
        ids["eos_token_id"] = sorted(set(ends))
    return ids


def get(gguf: GGUF, key: str, kind: type, default: Any = None) -> Any:
    """A metadata value of the expected type, or `FetchError` naming the key."""
    value: Any = gguf.metadata.get(key, default)
    known = isinstance(value, kind)
    if kind is int:  # every whole number that we read is a count
        known = known and 0 < value < 1 << 31
    if not known:
        raise FetchError(
            f"{gguf.path}: metadata {key!r} should be a {kind.__name__}, not {value!r:.80}"
        )
    return value


def shortest(value: float) -> float:
    """The decimal a float32 was written from: 9.999999747e-06 → 1e-05."""
    return float(str(np.float32(value)))
