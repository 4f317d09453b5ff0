"""weights.py: what is read is what is there, to the bit; what isn't right is named and refused."""

from __future__ import annotations

import json
import mmap
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.llama_folders import (
    SMALL,
    encode,
    random_weights,
    small_config,
    write_folder,
    write_index,
    write_raw_safetensors,
    write_safetensors,
    write_shards,
)
from tinyllm.config import ModelConfig
from tinyllm.errors import TinyllmError, WeightsError
from tinyllm.weights import expected_shapes, load_weights

CONFIG = ModelConfig.from_hf(SMALL)
UNTIED = ModelConfig.from_hf(small_config(tie_word_embeddings=False))
EMBED, NORM = "model.embed_tokens.weight", "model.norm.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


def load(folder: Path, config: ModelConfig = CONFIG) -> dict[str, np.ndarray]:
    return load_weights(folder, config)


# Reading.


@pytest.mark.parametrize("tied", [True, False])
def test_float32_is_read_to_the_bit(tmp_path: Path, tied: bool) -> None:
    config = CONFIG if tied else UNTIED
    weights = random_weights(config)
    safetensors.numpy.save_file(weights, tmp_path / "model.safetensors")  # the library's own writer
    loaded = load(tmp_path, config)
    assert set(loaded) == set(expected_shapes(config))
    assert ("lm_head.weight" in loaded) != tied
    for name, array in loaded.items():
        np.testing.assert_array_equal(array, weights[name], strict=True)


@pytest.mark.parametrize("pad", range(1, 5))
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_half_precision_is_widened_exactly(tmp_path: Path, dtype: str, pad: int) -> None:
    """Wherever in the file the data begins, a multiple of its item size or not."""
    weights = random_weights(CONFIG)
    weights[NORM][:8] = [0.0, -0.0, np.inf, -np.inf, 1e-7, -65504, 2.0**-24, np.nan]
    write_safetensors(tmp_path / "model.safetensors", weights, dtype, pad)
    for name, array in load(tmp_path).items():
        raw = encode(weights[name], dtype)
        if dtype == "BF16":  # the upper half of a float32
            bits = np.frombuffer(raw, np.uint16).astype(np.uint32) << 16
            expected = bits.view(np.float32)
        else:
            kind = np.float32 if dtype == "F32" else np.float16
            expected = np.frombuffer(raw, kind).astype(np.float32)
        np.testing.assert_array_equal(array, expected.reshape(array.shape), strict=True)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_arrays_are_plain_read_only_and_contiguous(tmp_path: Path, dtype: str, shards: int) -> None:
    write_folder(tmp_path, dtype=dtype, shards=shards)
    for array in load(tmp_path).values():
        assert type(array) is np.ndarray
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_float32_is_mapped_not_copied(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for array in load(tmp_path).values():
        owner: Any = array
        while isinstance(owner, np.ndarray):
            assert owner.base is not None, "the data was copied out of the file"
            owner = owner.base
        assert isinstance(owner, mmap.mmap)


@pytest.mark.parametrize("shards", [2, 5])
def test_shards_are_one_model(tmp_path: Path, shards: int) -> None:
    write_folder(tmp_path, shards=shards)
    for name, array in load(tmp_path).items():
        np.testing.assert_array_equal(array, random_weights(CONFIG)[name], strict=True)


def test_one_file_goes_before_shards(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", seed=1)
    write_shards(tmp_path / "a", random_weights(CONFIG, seed=2), 2)
    np.testing.assert_array_equal(load(tmp_path / "a")[NORM], random_weights(CONFIG, seed=1)[NORM])


def test_a_tied_head_may_be_written_out(tmp_path: Path) -> None:
    weights = random_weights(CONFIG)
    weights["lm_head.weight"] = weights[EMBED]
    write_safetensors(tmp_path / "model.safetensors", weights)
    assert "lm_head.weight" not in load(tmp_path)


def test_buffers_of_old_exporters_are_passed_over(tmp_path: Path) -> None:
    weights = random_weights(CONFIG)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(5, np.float32)
    write_safetensors(tmp_path / "model.safetensors", weights)
    assert set(load(tmp_path)) == set(expected_shapes(CONFIG))


# Refusing. Each maker spoils a good folder, and says what the message must name.

Spoiler = Callable[[Path], list[str]]
FILE = "model.safetensors"


def rewrite(folder: Path, **changes: np.ndarray | None) -> None:
    weights = random_weights(CONFIG)
    for name, array in changes.items():
        if array is None:
            del weights[name]
        else:
            weights[name] = array
    write_safetensors(folder / FILE, weights)


def spoil_header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a good file and write it back as it is."""
    raw = (folder / FILE).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    write_raw_safetensors(folder / FILE, header, raw[8 + length :])


def set_entry(name: str, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[name].update(values)


def missing_tensor(folder: Path) -> list[str]:
    rewrite(folder, **{DOWN: None})
    return [str(folder), DOWN, "missing"]


def missing_embedding(folder: Path) -> list[str]:
    rewrite(folder, **{EMBED: None})
    return [str(folder), EMBED, "missing"]


def extra_tensor(folder: Path) -> list[str]:
    rewrite(folder, **{"model.layers.3.mlp.down_proj.weight": np.ones((48, 80), np.float32)})
    return [FILE, "model.layers.3.mlp.down_proj.weight", "unexpected"]


def projection_bias(folder: Path) -> list[str]:
    rewrite(folder, **{"model.layers.0.self_attn.q_proj.bias": np.ones(60, np.float32)})
    return [FILE, "model.layers.0.self_attn.q_proj.bias", "unexpected"]


def misshapen_tensor(folder: Path) -> list[str]:
    rewrite(folder, **{DOWN: np.ones((80, 48), np.float32)})
    return [FILE, DOWN, "(80, 48)", "(48, 80)"]


def flat_tensor(folder: Path) -> list[str]:
    rewrite(folder, **{DOWN: np.ones(48 * 80, np.float32)})
    return [FILE, DOWN, "(3840,)"]


def untied_head_under_a_tied_config(folder: Path) -> list[str]:
    rewrite(folder, **{"lm_head.weight": np.zeros((99, 48), np.float32)})
    return [FILE, "lm_head.weight", EMBED, "tie_word_embeddings"]


def misshapen_tied_head(folder: Path) -> list[str]:
    rewrite(folder, **{"lm_head.weight": np.zeros((98, 48), np.float32)})
    return [FILE, "lm_head.weight"]


def unsupported_dtype(folder: Path) -> list[str]:
    write_safetensors(folder / FILE, random_weights(CONFIG), "F64")
    return [FILE, "model.", "F64"]


def unsupported_dtype_of_one(folder: Path) -> list[str]:
    spoil_header(folder, set_entry(NORM, dtype="I32"))
    return [FILE, NORM, "I32"]


def no_files(folder: Path) -> list[str]:
    (folder / FILE).unlink()
    return [str(folder), FILE]


def pickles_only(folder: Path) -> list[str]:
    (folder / FILE).rename(folder / "pytorch_model.bin")
    return [str(folder), "pytorch_model.bin", "pickle"]


def empty_file(folder: Path) -> list[str]:
    (folder / FILE).write_bytes(b"")
    return [FILE]


def seven_bytes(folder: Path) -> list[str]:
    (folder / FILE).write_bytes(b"\x10\0\0\0\0\0\0")
    return [FILE]


def cut_in_the_header(folder: Path) -> list[str]:
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:100])
    return [FILE]


def cut_in_the_data(folder: Path) -> list[str]:
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-1])
    return [FILE]


def data_too_long(folder: Path) -> list[str]:
    (folder / FILE).write_bytes((folder / FILE).read_bytes() + b"\0")
    return [FILE]


def huge_header_length(folder: Path) -> list[str]:
    (folder / FILE).write_bytes(b"\xff" * 8 + (folder / FILE).read_bytes()[8:])
    return [FILE]


def large_header_length(folder: Path) -> list[str]:
    """Within what the format allows, but beyond the file."""
    (folder / FILE).write_bytes((50_000_000).to_bytes(8, "little") + b"{}" + b" " * 100)
    return [FILE]


def header_not_json(folder: Path) -> list[str]:
    (folder / FILE).write_bytes((8).to_bytes(8, "little") + b'{"a": 1,' + b"\0" * 64)
    return [FILE]


def header_not_utf8(folder: Path) -> list[str]:
    (folder / FILE).write_bytes((8).to_bytes(8, "little") + b'{"\xff": 1}' + b"\0" * 64)
    return [FILE]


def header_a_list(folder: Path) -> list[str]:
    write_raw_safetensors(folder / FILE, [1, 2, 3], b"")
    return [FILE]


def header_deep(folder: Path) -> list[str]:
    text = b"[" * 100_000
    (folder / FILE).write_bytes(len(text).to_bytes(8, "little") + text)
    return [FILE]


def header_empty(folder: Path) -> list[str]:
    write_raw_safetensors(folder / FILE, {}, b"")
    return [str(folder), EMBED]


def overlapping(folder: Path) -> list[str]:
    def overlap(header: dict[str, Any]) -> None:
        names = [n for n in header if n.endswith("layernorm.weight")]
        header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]

    spoil_header(folder, overlap)
    return [FILE]


def offsets_beyond_the_end(folder: Path) -> list[str]:
    end = (folder / FILE).stat().st_size
    spoil_header(folder, set_entry(NORM, data_offsets=[end, end + 4 * 48]))
    return [FILE]


def offsets_negative(folder: Path) -> list[str]:
    spoil_header(folder, set_entry(NORM, data_offsets=[-192, 0]))
    return [FILE]


def offsets_backwards(folder: Path) -> list[str]:
    def turn(header: dict[str, Any]) -> None:
        header[NORM]["data_offsets"] = header[NORM]["data_offsets"][::-1]

    spoil_header(folder, turn)
    return [FILE]


def offsets_not_numbers(folder: Path) -> list[str]:
    spoil_header(folder, set_entry(NORM, data_offsets=["0", "192"]))
    return [FILE]


def shape_of_another_size(folder: Path) -> list[str]:
    spoil_header(folder, set_entry(NORM, shape=[49]))
    return [FILE]


def shape_that_overflows(folder: Path) -> list[str]:
    spoil_header(folder, set_entry(NORM, shape=[2**63, 2]))
    return [FILE]


def shape_negative(folder: Path) -> list[str]:
    spoil_header(folder, set_entry(NORM, shape=[-48]))
    return [FILE]


def unknown_dtype(folder: Path) -> list[str]:
    spoil_header(folder, set_entry(NORM, dtype="PICKLE"))
    return [FILE]


def no_dtype(folder: Path) -> list[str]:
    spoil_header(folder, lambda header: header[NORM].pop("dtype"))
    return [FILE]


def name_twice(folder: Path) -> list[str]:
    raw = (folder / FILE).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    entry = json.dumps({NORM: json.loads(raw[8 : 8 + length])[NORM]}).encode()
    text = raw[8 : 8 + length].rstrip()[:-1] + b", " + entry[1:]
    (folder / FILE).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    return [FILE, NORM, "twice"]


def a_folder_for_a_file(folder: Path) -> list[str]:
    (folder / FILE).unlink()
    (folder / FILE).mkdir()
    return [FILE]


def a_web_page(folder: Path) -> list[str]:
    """What a download that failed politely leaves behind."""
    (folder / FILE).write_text("<!DOCTYPE html><html><body>404: not found</body></html>")
    return [FILE]


def a_git_lfs_pointer(folder: Path) -> list[str]:
    (folder / FILE).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 538090408\n"
    )
    return [FILE]


def sharded(folder: Path) -> dict[str, str]:
    (folder / FILE).unlink()
    return write_shards(folder, random_weights(CONFIG), 2)


SHARD_1, SHARD_2 = (f"model-0000{k}-of-00002.safetensors" for k in (1, 2))
INDEX = "model.safetensors.index.json"


def shard_missing(folder: Path) -> list[str]:
    sharded(folder)
    (folder / SHARD_2).unlink()
    return [SHARD_2, "missing", INDEX]


def shard_cut(folder: Path) -> list[str]:
    sharded(folder)
    (folder / SHARD_2).write_bytes((folder / SHARD_2).read_bytes()[:-5])
    return [SHARD_2]


def tensor_in_two_shards(folder: Path) -> list[str]:
    weight_map = sharded(folder)
    part = {n: a for n, a in random_weights(CONFIG).items() if weight_map[n] == SHARD_2}
    write_safetensors(folder / SHARD_2, part | {EMBED: random_weights(CONFIG)[EMBED]})
    return [SHARD_1, SHARD_2, EMBED]


def tensor_not_in_its_shard(folder: Path) -> list[str]:
    weight_map = sharded(folder)
    part = {n: a for n, a in random_weights(CONFIG).items() if weight_map[n] == SHARD_1}
    write_safetensors(folder / SHARD_1, {n: a for n, a in part.items() if n != EMBED})
    return [SHARD_1, EMBED, "missing"]


def index_points_outside(folder: Path) -> list[str]:
    weight_map = sharded(folder)
    shutil.copy(folder / SHARD_1, folder.parent / "outside.safetensors")
    write_index(
        folder, {n: s.replace(SHARD_1, "../outside.safetensors") for n, s in weight_map.items()}
    )
    return [INDEX, "../outside.safetensors"]


def index_absolute(folder: Path) -> list[str]:
    weight_map = sharded(folder)
    write_index(folder, weight_map | {EMBED: "/etc/hostname"})
    return [INDEX, "/etc/hostname"]


def index_empty(folder: Path) -> list[str]:
    sharded(folder)
    write_index(folder, {})
    return [INDEX, "weight_map"]


def index_without_map(folder: Path) -> list[str]:
    sharded(folder)
    (folder / INDEX).write_text("{}")
    return [INDEX, "weight_map"]


def index_a_list(folder: Path) -> list[str]:
    sharded(folder)
    write_index(folder, [SHARD_1, SHARD_2])
    return [INDEX, "weight_map"]


def index_of_numbers(folder: Path) -> list[str]:
    weight_map = sharded(folder)
    write_index(folder, weight_map | {EMBED: 7})
    return [INDEX, "7"]


def index_of_lists(folder: Path) -> list[str]:
    weight_map = sharded(folder)
    write_index(folder, weight_map | {EMBED: [SHARD_1]})
    return [INDEX]


def index_of_nothing(folder: Path) -> list[str]:
    weight_map = sharded(folder)
    write_index(folder, weight_map | {EMBED: ""})
    return [INDEX]


def index_names_the_folder(folder: Path) -> list[str]:
    weight_map = sharded(folder)
    write_index(folder, weight_map | {EMBED: ".."})
    return [INDEX, ".."]


def index_names_a_pickle(folder: Path) -> list[str]:
    weight_map = sharded(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    write_index(folder, dict.fromkeys(weight_map, "pytorch_model.bin"))
    return ["pytorch_model.bin"]


def index_not_json(folder: Path) -> list[str]:
    sharded(folder)
    (folder / INDEX).write_text("{")
    return [INDEX, "JSON"]


SPOILERS: list[Spoiler] = [
    missing_tensor, missing_embedding, extra_tensor, projection_bias, misshapen_tensor,
    flat_tensor, untied_head_under_a_tied_config, misshapen_tied_head, unsupported_dtype,
    unsupported_dtype_of_one, no_files, pickles_only, empty_file, seven_bytes,
    cut_in_the_header, cut_in_the_data, data_too_long, huge_header_length, large_header_length,
    header_not_json, header_not_utf8, header_a_list, header_deep, header_empty, overlapping,
    offsets_beyond_the_end, offsets_negative, offsets_backwards, offsets_not_numbers,
    shape_of_another_size, shape_that_overflows, shape_negative, unknown_dtype, no_dtype,
    name_twice, a_folder_for_a_file, a_web_page, a_git_lfs_pointer, shard_missing, shard_cut,
    tensor_in_two_shards, tensor_not_in_its_shard, index_points_outside, index_absolute,
    index_empty, index_without_map, index_a_list, index_of_numbers, index_of_lists,
    index_of_nothing, index_names_the_folder, index_names_a_pickle, index_not_json,
]  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_a_spoiled_folder_is_refused_by_file_and_tensor(spoil: Spoiler, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_folder(folder)
    load(folder)  # good before
    words = spoil(folder)
    with pytest.raises(WeightsError) as caught:
        load(folder)
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text
    assert len(text) < 500
    # No chain of somebody else's exceptions behind it.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_every_error_is_one_that_callers_catch() -> None:
    assert issubclass(WeightsError, TinyllmError)
    assert issubclass(WeightsError, ValueError)


@pytest.mark.parametrize("position", [0, 3, 8, 40, 900])
def test_flipped_bytes_never_crash(tmp_path: Path, position: int) -> None:
    """A damaged header is refused, or reads as one that fits; nothing else comes out."""
    write_folder(tmp_path)
    good = (tmp_path / FILE).read_bytes()
    for value in range(0, 256, 5):
        (tmp_path / FILE).write_bytes(good[:position] + bytes([value]) + good[position + 1 :])
        try:
            assert set(load(tmp_path)) == set(expected_shapes(CONFIG))
        except WeightsError as error:
            assert FILE in str(error) or str(tmp_path) in str(error)


def test_expected_shapes() -> None:
    shapes = expected_shapes(UNTIED)
    assert len(shapes) == 3 + 3 * 9
    assert shapes[EMBED] == shapes["lm_head.weight"] == (99, 48)
    assert shapes["model.layers.2.self_attn.q_proj.weight"] == (60, 48)
    assert shapes["model.layers.2.self_attn.k_proj.weight"] == (20, 48)
    assert shapes["model.layers.2.self_attn.o_proj.weight"] == (48, 60)


def test_the_real_weights(weights_folder: Path) -> None:
    weights = load_weights(weights_folder, ModelConfig.from_folder(weights_folder))
    assert sum(array.size for array in weights.values()) == 134_515_008
    assert all(np.isfinite(array).all() for array in weights.values())
