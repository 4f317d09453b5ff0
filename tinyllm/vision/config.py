"""The shape of an image encoder, and what each family of checkpoints calls its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tinyllm.errors import ConfigError
from tinyllm.families.keys import value_of as get_key

Kind = Literal["dinov2", "siglip", "clip", "idefics3"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]

# `config.json`'s model_type → kind. A whole image-and-text model keeps its encoder's settings
# under vision_config.
KINDS: dict[str, Kind] = {
    "dinov2": "dinov2",
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
    "gemma3": "siglip",
    "clip": "clip",
    "clip_vision_model": "clip",
    "idefics3": "idefics3",
    "idefics3_vision": "idefics3",
    "smolvlm": "idefics3",
    "smolvlm_vision": "idefics3",
}
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
# What a config may leave out because its class has it as a default.
DEFAULTS: dict[Kind, dict[str, Any]] = {
    "dinov2": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "mlp_ratio": 4,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "image_size": 224,
        "patch_size": 14,
        "qkv_bias": True,
    },
    "siglip": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "image_size": 224,
        "patch_size": 16,
    },
    "clip": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "image_size": 224,
        "patch_size": 32,
    },
    "idefics3": {
        "hidden_size": 1152,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "image_size": 224,
        "patch_size": 32,
    },
}


@dataclass(frozen=True)
class VisionConfig:
    """The shape of a vision transformer. Sizes of images and patches are in pixels, a side."""

    kind: Kind
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    image_size: int  # the native one, which the position table was trained for
    patch_size: int
    norm_eps: float
    activation: Activation
    qkv_bias: bool = True
    n_channels: int = 3

    def __post_init__(self) -> None:
        for name in ("dim", "hidden_dim", "n_layers", "n_heads", "image_size", "patch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.dim % self.n_heads:
            raise ConfigError(f"dim ({self.dim}) must be a multiple of n_heads ({self.n_heads})")
        if self.image_size < self.patch_size:
            raise ConfigError(
                f"image_size ({self.image_size}) is smaller than patch_size ({self.patch_size})"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_heads

    @property
    def native_grid(self) -> int:
        """Patches along a side of an image of the native size."""
        return self.image_size // self.patch_size

    @property
    def has_class_token(self) -> bool:
        """Whether row 0 of the output stands for the whole image."""
        return self.kind in ("dinov2", "clip")

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> VisionConfig:
        """Read the keys of a hub `config.json`: an encoder's own, or a model's vision_config.

        Raises:
            ConfigError: an unsupported encoder or feature, or a missing or mistyped key.
        """
        model_type = raw.get("model_type")
        kind = KINDS.get(model_type) if isinstance(model_type, str) else None
        if kind is None:
            raise ConfigError(
                f"model_type is {model_type!r}; the image encoders are {', '.join(KINDS)}"
            )
        inner = raw.get("vision_config", raw)
        if not isinstance(inner, Mapping):
            raise ConfigError(f"vision_config must be an object, not {inner!r}")
        merged = DEFAULTS[kind] | {k: v for k, v in inner.items() if v is not None}
        if merged.get("use_swiglu_ffn"):
            raise ConfigError("use_swiglu_ffn is set; only the plain MLP is supported")
        activation = ACTIVATIONS.get(str(merged["hidden_act"]))
        if activation is None:
            raise ConfigError(
                f"hidden_act is {merged['hidden_act']!r}; supported: {', '.join(ACTIVATIONS)}"
            )
        dim = get_key(merged, "hidden_size", int)
        n_channels = get_key(merged, "num_channels", int, 3)
        if n_channels != 3:
            raise ConfigError(f"num_channels is {n_channels}; images have 3")
        return cls(
            kind=kind,
            dim=dim,
            hidden_dim=(
                int(dim * get_key(merged, "mlp_ratio", float))
                if kind == "dinov2"
                else get_key(merged, "intermediate_size", int)
            ),
            n_layers=get_key(merged, "num_hidden_layers", int),
            n_heads=get_key(merged, "num_attention_heads", int),
            image_size=_square(merged, "image_size"),
            patch_size=_square(merged, "patch_size"),
            norm_eps=get_key(merged, "layer_norm_eps", float),
            activation=activation,
            qkv_bias=get_key(merged, "qkv_bias", bool, True),
        )


def _square(raw: Mapping[str, Any], key: str) -> int:
    """A side in pixels; some files write the two sides of the square."""
    value = raw[key]
    if isinstance(value, (list, tuple)) and len(value) == 2 and value[0] == value[1]:
        return get_key({key: value[0]}, key, int)
    return get_key(raw, key, int)


@dataclass(frozen=True)
class TensorNames:
    """The checkpoint's own names, so that weights stay as they were published."""

    patches: str  # the projection of patches: .weight (dim, 3, patch, patch), .bias (dim,)
    positions: str  # (positions, dim), the class token's first
    block: str  # prefix of a layer's tensors, with the layer's number to fill in
    norm1: str
    q: str
    k: str
    v: str
    out: str
    norm2: str
    fc1: str
    fc2: str
    final_norm: str | None  # over the last block's output
    class_token: str | None = None
    pre_norm: str | None = None  # before the first block
    scale1: str | None = None  # LayerScale: a factor a channel on each branch
    scale2: str | None = None
    patch_bias: bool = True


_DINOV2 = TensorNames(
    patches="embeddings.patch_embeddings.projection",
    positions="embeddings.position_embeddings",
    class_token="embeddings.cls_token",
    block="encoder.layer.{}",
    norm1="norm1",
    q="attention.attention.query",
    k="attention.attention.key",
    v="attention.attention.value",
    out="attention.output.dense",
    scale1="layer_scale1.lambda1",
    norm2="norm2",
    fc1="mlp.fc1",
    fc2="mlp.fc2",
    scale2="layer_scale2.lambda1",
    final_norm="layernorm",
)
_SIGLIP = TensorNames(
    patches="embeddings.patch_embedding",
    positions="embeddings.position_embedding.weight",
    block="encoder.layers.{}",
    norm1="layer_norm1",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    out="self_attn.out_proj",
    norm2="layer_norm2",
    fc1="mlp.fc1",
    fc2="mlp.fc2",
    final_norm="post_layernorm",
)
_CLIP = replace(
    _SIGLIP,
    class_token="embeddings.class_embedding",
    pre_norm="pre_layrnorm",  # misspelt by whoever wrote it first, and so in every checkpoint
    final_norm=None,  # CLIP's post_layernorm is for the pooled class token alone
    patch_bias=False,
)
NAMES: dict[Kind, TensorNames] = {
    "dinov2": _DINOV2,
    "siglip": _SIGLIP,
    "clip": _CLIP,
    "idefics3": _SIGLIP,
}


def expected_shapes(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that the encoder reads, without any prefix; matrices are (out, in)."""
    names, dim, patch = NAMES[config.kind], config.dim, config.patch_size
    n_positions = config.native_grid**2 + config.has_class_token
    # DINOv2 keeps a leading axis of one on its tables.
    lead = (1,) if config.kind == "dinov2" else ()
    shapes: dict[str, tuple[int, ...]] = {
        f"{names.patches}.weight": (dim, config.n_channels, patch, patch),
        names.positions: (*lead, n_positions, dim),
    }
    if names.patch_bias:
        shapes[f"{names.patches}.bias"] = (dim,)
    if names.class_token:
        shapes[names.class_token] = (1, 1, dim) if config.kind == "dinov2" else (dim,)
    matrices = {
        names.q: (dim, dim),
        names.k: (dim, dim),
        names.v: (dim, dim),
        names.out: (dim, dim),
        names.fc1: (config.hidden_dim, dim),
        names.fc2: (dim, config.hidden_dim),
    }
    for i in range(config.n_layers):
        block = names.block.format(i)
        for name, shape in matrices.items():
            shapes[f"{block}.{name}.weight"] = shape
            if config.qkv_bias or name not in (names.q, names.k, names.v):
                shapes[f"{block}.{name}.bias"] = shape[:1]
        for norm in (names.norm1, names.norm2):
            shapes[f"{block}.{norm}.weight"] = shapes[f"{block}.{norm}.bias"] = (dim,)
        for scale in (names.scale1, names.scale2):
            if scale:
                shapes[f"{block}.{scale}"] = (dim,)
    for norm_name in (names.pre_norm, names.final_norm):
        if norm_name:
            shapes[f"{norm_name}.weight"] = shapes[f"{norm_name}.bias"] = (dim,)
    return shapes
