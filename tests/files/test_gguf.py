"""The GGUF reader against the `gguf` package, and against files that mean it harm."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fetch.files import VOCAB, tensors, write_gguf
from tinyllm.errors import FetchError
from tinyllm.files.blocks import values
from tinyllm.files.gguf import BLOCK_TYPES, GGUF, KINDS

QUANTISED = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1]


def test_every_kind_that_the_library_dequantises_is_read() -> None:
    named = {kind.name for kind in gguf.quants._type_traits} | {"F32", "F16"}
    assert set(KINDS) == named
    sizes = {Kind[b.name]: (b.values, b.nbytes) for b in BLOCK_TYPES.values()}
    assert sizes == {kind: gguf.constants.GGML_QUANT_SIZES[kind] for kind in sizes}
    assert all(Kind[block.name] == number for number, block in BLOCK_TYPES.items())


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_reads_what_the_library_wrote(tmp_path: Path, kind: Kind) -> None:
    path = write_gguf(tmp_path / "m.gguf", kind)
    with GGUF(path) as ours:
        theirs = gguf.GGUFReader(path)
        assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
        for tensor in theirs.tensors:
            expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            info = ours.tensors[tensor.name]
            found = values(ours.raw(tensor.name), info.type, info.shape)
            assert found.dtype == np.float32
            assert found.shape == tuple(int(n) for n in tensor.shape[::-1])
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", KINDS)
def test_any_bytes_of_any_kind(tmp_path: Path, name: str) -> None:
    """Not only what a quantiser writes: every scale, infinities and NaN among them."""
    kind = Kind[name]
    block = BLOCK_TYPES[kind.value]
    rng = np.random.default_rng(kind.value)
    raw = rng.integers(0, 256, (64, 10 * block.nbytes), dtype=np.uint8)
    found = values(raw.reshape(-1), block, (64, 10 * block.values))
    typed = raw.view({Kind.F32: "<f4", Kind.F16: "<f2"}.get(kind, np.uint8))
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(typed, kind)
    np.testing.assert_array_equal(found, expected)


def test_metadata(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf",
        change={
            "a.bool": True,
            "a.float": 0.5,
            "a.text": "héllo",
            "a.floats": [0.5, 1.5],
            "a.flags": [True, False],
            "a.texts": ["", "日本"],
        },
    )
    with GGUF(path) as file:
        assert file.metadata["a.bool"] is True
        assert file.metadata["a.float"] == 0.5
        assert file.metadata["a.text"] == "héllo"
        assert file.metadata["a.floats"].tolist() == [0.5, 1.5]
        assert file.metadata["a.flags"].tolist() == [True, False]
        assert file.metadata["a.texts"] == ["", "日本"]
        assert file.metadata["tokenizer.ggml.tokens"] == VOCAB
        assert file.metadata["general.architecture"] == "llama"


def test_nothing_or_something_else(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"none\.gguf.*cannot be read"):
        GGUF(tmp_path / "none.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(FetchError, match=r"empty\.gguf"):
        GGUF(tmp_path / "empty.gguf")
    (tmp_path / "zip.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(FetchError, match="does not begin with 'GGUF'"):
        GGUF(tmp_path / "zip.gguf")


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def header(n_tensors: int = 0, n_metadata: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_metadata)


def tensor(name: bytes, shape: tuple[int, ...], kind: int, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


PAD = bytes(256)
HOSTILE = {
    "version": (header(version=1) + PAD, "GGUF version 1"),
    "big-endian": (header(version=3 << 24) + PAD, "GGUF version"),
    "tensor count": (header(n_tensors=1 << 62) + PAD, "tensor count"),
    "metadata count": (header(n_metadata=1 << 63) + PAD, "metadata count"),
    "key length": (header(0, 1) + struct.pack("<Q", 1 << 60) + PAD, "length of a metadata key"),
    "key not UTF-8": (header(0, 1) + text(b"\xff\xfe") + PAD, "not UTF-8"),
    "value type": (header(0, 1) + text(b"k") + struct.pack("<I", 13) + PAD, "unknown type 13"),
    "array length": (
        header(0, 1) + text(b"k") + struct.pack("<IIQ", 9, 6, 1 << 61) + PAD,
        "length of 'k'",
    ),
    "strings' count": (
        header(0, 1) + text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 40) + PAD,
        "length of 'k'",
    ),
    "arrays in arrays": (
        header(0, 1) + text(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 20 + PAD,
        "unknown type 9",
    ),
    "a key twice": (
        header(0, 2) + (text(b"k") + struct.pack("<IB", 0, 1)) * 2 + PAD,
        "'k' twice",
    ),
    "alignment 0": (
        header(0, 1) + text(b"general.alignment") + struct.pack("<II", 4, 0) + PAD,
        "general.alignment 0",
    ),
    "no dimensions": (header(1) + tensor(b"t", (), 0) + PAD, "0 dimensions"),
    "a billion dimensions": (
        header(1) + text(b"t") + struct.pack("<I", 1 << 30) + PAD,
        "1073741824 dimensions",
    ),
    "an empty dimension": (header(1) + tensor(b"t", (32, 0), 0) + PAD, "no fit"),
    "a ragged row": (header(1) + tensor(b"t", (33,), 2) + PAD, "no fit for Q4_0"),
    "block type": (header(1) + tensor(b"t", (32,), 5) + PAD, "ggml type 5, .*another quant"),
    "larger than the file": (header(1) + tensor(b"t", (1 << 20,), 0) + PAD, "cut short"),
    "product past 64 bits": (header(1) + tensor(b"t", (1 << 40,) * 4, 0) + PAD, "cut short"),
    "beyond the end": (header(1) + tensor(b"t", (4,), 0, 1 << 40) + PAD, "cut short"),
    "off the grid": (header(1) + tensor(b"t", (4,), 0, 4) + PAD, "cut short"),
    "a tensor twice": (header(2) + tensor(b"t", (4,), 0) * 2 + PAD, "'t' twice"),
    "ends in the header": (header(0, 1)[:-3], "cut short"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_raise_and_allocate_nothing(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(FetchError, match=message) as caught:
            GGUF(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert "hostile.gguf" in str(caught.value)


def test_every_truncation_raises(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    whole = path.read_bytes()
    for size in {*range(0, 4000, 37), *range(len(whole) - 200, len(whole) - 32, 7)}:
        path.write_bytes(whole[:size])
        with pytest.raises(FetchError):
            GGUF(path)


@given(st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_flipped_bytes_never_crash(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    source = folder / "whole.gguf"
    if not source.exists():
        write_gguf(source)
    content = bytearray(source.read_bytes())
    for place, value in flips:
        content[place] = value
    path = folder / "flipped.gguf"
    path.write_bytes(content)
    try:
        with GGUF(path) as file:
            for name in file.tensors:
                file.raw(name)
    except FetchError:
        pass


def test_the_view_is_of_the_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", Kind.F32)
    with GGUF(path) as file:
        raw = file.raw("output_norm.weight")
        assert not raw.flags.owndata
        np.testing.assert_array_equal(raw.view("<f4"), tensors()["output_norm.weight"])
        del raw


def split(folder: Path, n: int = 3) -> list[Path]:
    """A whole model written by the gguf package in `n` parts."""
    whole = write_gguf(folder / "whole.gguf", Kind.Q8_0)
    reader = gguf.GGUFReader(whole)
    per_part = -(-len(reader.tensors) // n)
    paths = []
    for i in range(n):
        paths.append(folder / f"m-{i + 1:05}-of-{n:05}.gguf")
        writer = gguf.GGUFWriter(paths[-1], "llama")
        if i == 0:
            writer.add_uint32("llama.block_count", 2)
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", n)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[i * per_part : (i + 1) * per_part]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def test_a_split_model_by_any_part(tmp_path: Path) -> None:
    paths = split(tmp_path)
    with GGUF(tmp_path / "whole.gguf") as whole:
        for path in paths:
            with GGUF(path) as parts:
                assert parts.paths == paths
                assert parts.metadata["llama.block_count"] == 2
                assert set(parts.tensors) == set(whole.tensors)
                for name in whole.tensors:
                    np.testing.assert_array_equal(parts.raw(name), whole.raw(name))


def test_a_split_model_that_is_not_whole(tmp_path: Path) -> None:
    paths = split(tmp_path)
    alone = paths[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(FetchError, match=r"one of 3 parts; give them their own names"):
        GGUF(alone)
    with pytest.raises(FetchError, match=r"m-00001-of-00003\.gguf must lie beside it"):
        GGUF(paths[1])
    with pytest.raises(FetchError, match="no model has a part of that number"):
        GGUF(tmp_path / "m-00004-of-00003.gguf")
    alone.rename(paths[0])
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(FetchError, match="twice"):
        GGUF(paths[0])
