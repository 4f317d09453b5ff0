"""fp8 and MXFP4 checkpoints, widened: against the formats' definitions, value by value."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.families_folder import config_keys
from tests.golden.families import load_goldens, values
from tests.llama_folders import random_weights, small_config, write_raw_safetensors
from tinyllm.config import ModelConfig
from tinyllm.errors import WeightsError
from tinyllm.files.mxfp4 import as_five_bits, widen
from tinyllm.kernels.formats import FORMATS
from tinyllm.model import Model
from tinyllm.weights import E4M3, Checkpoint, load_weights


def e4m3(code: int) -> float:
    """By the definition: sign, exponent with a bias of 7, three bits of fraction; no infinity."""
    sign, exponent, fraction = -1.0 if code & 128 else 1.0, code >> 3 & 15, code & 7
    if code & 127 == 127:
        return math.nan
    if exponent == 0:
        return sign * fraction * 2.0**-9
    return sign * (1 + fraction / 8) * 2.0 ** (exponent - 7)


def test_every_value_of_8_bits() -> None:
    np.testing.assert_array_equal(E4M3, [e4m3(code) for code in range(256)])
    assert np.nanmax(E4M3) == 448


def write(
    folder: Path, tensors: dict[str, tuple[str, Any]], file: str = "model.safetensors"
) -> None:
    header: dict[str, Any] = {}
    data = b""
    for name, (dtype, array) in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}  # fmt: skip
        data += raw
    write_raw_safetensors(folder / file, header, data)


@pytest.mark.parametrize("scales", ["one", "rows", "blocks", "none"])
def test_fp8_times_its_scales(tmp_path: Path, scales: str) -> None:
    """The down projection of layer 1, (48, 80), in blocks of 32 × 32 with the last cut short."""
    raw = small_config(quantization_config={"quant_method": "fp8"})
    config = ModelConfig.from_hf(raw)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 127, (48, 80), np.uint8)
    given = {"one": (), "rows": (48, 1), "blocks": (2, 3), "none": ()}[scales]
    scale = rng.uniform(0.5, 2, given).astype(np.float32)
    name = "model.layers.1.mlp.down_proj.weight"
    tensors: dict[str, tuple[str, Any]] = {
        key: ("F32", array) for key, array in random_weights(config).items()
    }
    tensors[name] = ("F8_E4M3", codes)
    if scales != "none":
        tensors[f"{name}_scale_inv"] = ("F32", scale)
    write(tmp_path, tensors)
    if scales == "none":
        with pytest.raises(WeightsError, match="scale_inv"):
            load_weights(tmp_path, config)
        return
    got = load_weights(tmp_path, config)[name]
    for i in range(48):
        for j in range(80):
            at = {"one": (), "rows": (i, 0), "blocks": (i // 32, j // 32)}[scales]
            assert got[i, j] == np.float32(e4m3(int(codes[i, j]))) * scale[at]


def test_fp8_in_shards(tmp_path: Path) -> None:
    """Every matrix in fp8, its scales in another file than itself: the values of one whole file."""
    raw = small_config(quantization_config={"quant_method": "fp8", "weight_block_size": [32, 32]})
    config = ModelConfig.from_hf(raw)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    rng = np.random.default_rng(0)
    shards: list[dict[str, tuple[str, Any]]] = [{}, {}]
    plain = {}
    for i, (name, array) in enumerate(random_weights(config).items()):
        if "proj" not in name:
            shards[i % 2][name] = ("F32", array)
            plain[name] = array
            continue
        codes = rng.integers(0, 120, array.shape, np.uint8) | rng.choice([0, 128], array.shape)
        scale = rng.uniform(1e-4, 1e-3, [-(-n // 32) for n in array.shape]).astype(np.float32)
        shards[i % 2][name] = ("F8_E4M3", codes.astype(np.uint8))
        shards[1 - i % 2][f"{name}_scale_inv"] = ("F32", scale)
        wide = scale.repeat(32, 0).repeat(32, 1)[: array.shape[0], : array.shape[1]]
        plain[name] = E4M3[codes] * wide
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for file, tensors in zip(files, shards, strict=True):
        write(tmp_path, tensors, file)
    places = {name: file for file, tensors in zip(files, shards, strict=True) for name in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    weights = load_weights(tmp_path, config)
    assert weights.keys() == plain.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(array, plain[name], name)
    with np.errstate(all="raise"):
        model = Model(config, weights)
        logits = model.forward([1, 2, 3], model.new_cache(3))
    assert np.isfinite(logits).all()


MAGNITUDES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def test_mxfp4_of_gpt_oss(tmp_path: Path) -> None:
    """The gate and up of an expert, in turn, from nibbles and powers of two."""
    golden = load_goldens()["gpt_oss"]
    raw = {**golden.config, "quantization_config": {"quant_method": "mxfp4"}}
    config = ModelConfig.from_hf(raw)
    rng = np.random.default_rng(0)
    fused = "model.layers.2.mlp.experts.gate_up_proj"
    experts, dim, rows = golden.shapes[fused]
    blocks = rng.integers(0, 256, (experts, rows, dim // 32, 16), np.uint8)
    powers = rng.integers(120, 130, (experts, rows, dim // 32), np.uint8)
    tensors: dict[str, tuple[str, Any]] = {
        name: ("F32", values(name, shape)) for name, shape in golden.shapes.items() if name != fused
    }
    tensors |= {f"{fused}_blocks": ("U8", blocks), f"{fused}_scales": ("U8", powers)}
    write(tmp_path, tensors)
    weights = load_weights(tmp_path, config)
    gate = weights["model.layers.2.mlp.experts.3.gate_proj.weight"]
    up = weights["model.layers.2.mlp.experts.3.up_proj.weight"]
    assert config_keys("gpt_oss")[1]["num_local_experts"] == experts
    for row in range(rows):
        for i in range(dim):
            byte = int(blocks[3, row, i // 32, i % 32 // 2])
            nibble = byte >> 4 if i % 2 else byte & 15
            value = MAGNITUDES[nibble & 7] * (-1 if nibble & 8 else 1)
            want = value * 2.0 ** (int(powers[3, row, i // 32]) - 127)
            assert (up if row % 2 else gate)[row // 2, i] == want

    # The kernels' own format holds them as they are.
    checkpoint = Checkpoint(tmp_path, config)
    form = FORMATS["gguf"]
    for name, want in (("gate", gate), ("up", up)):
        carried = checkpoint.blocks(f"model.layers.2.mlp.experts.3.{name}_proj.weight")
        assert carried is not None and carried.kind == "Q5_1"
        np.testing.assert_array_equal(form.restore(*form.carry["Q5_1"](carried)), want)


def test_mxfp4_beyond_float16_is_not_carried() -> None:
    """Of all powers those are whose halves, and twelve of them, float16 holds without rounding."""
    blocks = np.arange(16, dtype=np.uint8).reshape(1, 1, 16) * 17  # all sixteen values
    for power in range(255):
        powers = np.array([[power]], np.uint8)
        carried = as_five_bits(blocks, powers)
        assert (carried is not None) == (104 <= power <= 140)
        if carried is not None:
            form = FORMATS["gguf"]
            got = form.restore(*form.carry["Q5_1"](carried))
            np.testing.assert_array_equal(got, widen(blocks, powers))
