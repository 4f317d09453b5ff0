"""`model.q4.safetensors`: a checkpoint's own quantised blocks, carried over bit for bit.

The file the weights come from holds 4- and 8-bit blocks. Widened to float32 they make
`model.safetensors`; kept as they are they make this file, so that a 4-bit kernel can run the
very numbers that were published, with no second rounding. Both give the same values.

For a tensor `T` (Hugging Face name and row order, shape (n_out, n_in), G = n_in / 32 groups a row):

    stored as        tensors in the file
    F32, F16, BF16   T                                            (…) float32
    Q8_0             T.q8  (n_out, n_in) int8,       T.scales  (n_out, G) float16
    Q4_0             T.q4  (n_out, G, 16) uint8,     T.scales  (n_out, G) float16
    Q4_1             as Q4_0, and                    T.mins    (n_out, G) float16

Byte j of a group of nibbles holds value j in its low half and value j + 16 in its high half.
The values: `scale · q8`, `scale · (nibble − 8)` without mins, `scale · nibble + min` with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tinyllm.errors import WeightsError
from tinyllm.files.gguf import Blocks

FILE_NAME = "model.q4.safetensors"


def save_blocks(path: Path, tensors: Mapping[str, Blocks]) -> None:
    """Write blocks, by tensor name, in the layout above."""
    flat: dict[str, Any] = {}
    for name, blocks in tensors.items():
        if blocks.plain is not None:
            flat[name] = np.ascontiguousarray(blocks.plain)
            continue
        flat[f"{name}.q8" if blocks.kind == "Q8_0" else f"{name}.q4"] = blocks.q
        flat[f"{name}.scales"] = blocks.scales
        if blocks.mins is not None:
            flat[f"{name}.mins"] = blocks.mins
    save_file(flat, path, metadata={"format": "np", "layout": "tinyllm.blocks.1"})


def load_blocks(path: Path | str) -> dict[str, Blocks]:
    """Read the file back: {tensor name: Blocks}. Raises `WeightsError` naming file and tensor.

    `path` may be the folder that holds the file.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    try:
        with safe_open(path, framework="np") as file:
            flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path}: the quantised blocks cannot be read ({error}); "
            "delete the folder and run `tinyllm pull` again"
        ) from error

    tensors: dict[str, Blocks] = {}
    for key, array in flat.items():
        name, _, part = key.rpartition(".")
        if part in ("scales", "mins"):
            continue
        if part not in ("q4", "q8"):
            tensors[key] = Blocks("F32", plain=array)
            continue
        scales, mins = flat.get(f"{name}.scales"), flat.get(f"{name}.mins")
        kind = "Q8_0" if part == "q8" else "Q4_0" if mins is None else "Q4_1"
        dtype = np.int8 if part == "q8" else np.uint8
        groups = (*array.shape[:-1], array.shape[-1] // 32) if part == "q8" else array.shape[:-1]
        if (
            scales is None
            or array.dtype != dtype
            or any(
                side is not None and (side.shape != groups or side.dtype != np.float16)
                for side in (scales, mins)
            )
        ):
            raise WeightsError(f"{path}: the blocks of {name!r} do not fit together; pull again")
        tensors[name] = Blocks(kind, q=array, scales=scales, mins=mins)
    return tensors
