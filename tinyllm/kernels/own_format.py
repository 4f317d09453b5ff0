"""Which format a checkpoint's weights are in already: `--dtype auto` computes in that one.

Rounding weights anew costs answers, whatever the new format: of a hundred plain questions, 8 bits
made of a 4-bit file keep half. So nothing is rounded unless it is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open

from tinyllm.files.carried import FILE_NAME as CARRIED_FILE
from tinyllm.kernels.formats import Dtype
from tinyllm.weights import checkpoint_files


def own_format(folder: Path) -> Dtype:
    """The smallest format that holds a checkpoint's matrices as they are.

    q4 or q8 where its own blocks were carried over and all layers' are of that kind, bf16 where
    every tensor is that, else f32: float16 and mixtures of blocks fit no other without rounding.

    Raises:
        WeightsError: the folder has no weights.
    """
    files = checkpoint_files(folder)
    if (folder / CARRIED_FILE).is_file():
        with safe_open(folder / CARRIED_FILE, framework="np") as blocks:
            names = [name for name in blocks.keys() if ".layers." in name]  # noqa: SIM118
        kinds = {
            name.rpartition(".")[2]
            for name in names
            if name.endswith((".q4", ".q8", "_proj.weight"))
        }
        if kinds == {"q4"}:
            return "q4"
        if kinds == {"q8"}:
            return "q8"
        return "f32"
    return "bf16" if all(_is_bf16(path) for path in files) else "f32"


def _is_bf16(path: Path) -> bool:
    with safe_open(path, framework="np") as file:
        opened: Any = file
        return all(opened.get_slice(name).get_dtype() == "BF16" for name in opened.keys())  # noqa: SIM118
