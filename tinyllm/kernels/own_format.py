"""Which format a checkpoint's weights are in already: `--dtype auto` computes in that one.

Rounding weights anew changes answers, whatever the new format (`tinyllm quality` counts them), so
nothing is rounded unless it is asked for.
"""

from __future__ import annotations

from pathlib import Path

from tinyllm.kernels.formats import Dtype
from tinyllm.weights import index_folder


def own_format(folder: Path) -> Dtype:
    """The smallest format that holds a checkpoint's matrices as they are.

    q4 or q8 where all layers' matrices are blocks of that kind in a GGUF file, bf16 where every
    tensor is that, else f32: float16 and mixtures of blocks fit no other without rounding.

    Raises:
        WeightsError: the folder has no weights.
    """
    stored = index_folder(folder)
    kinds = {
        tensor.dtype
        for name, tensor in stored.items()
        if ".layers." in name and name.endswith("_proj.weight")
    }
    if kinds and kinds <= {"Q4_0", "Q4_1"}:
        return "q4"
    if kinds == {"Q8_0"}:
        return "q8"
    return "bf16" if {tensor.dtype for tensor in stored.values()} == {"BF16"} else "f32"
