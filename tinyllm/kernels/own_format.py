"""Which format a checkpoint's weights are in already: `--dtype auto` computes in that one.

Rounding weights anew changes answers, whatever the new format (`tinyllm quality` counts them), so
nothing is rounded unless it is asked for.
"""

from __future__ import annotations

from pathlib import Path

from tinyllm.kernels.formats import FORMATS, Dtype
from tinyllm.weights import index_folder


def own_format(folder: Path) -> Dtype:
    """The smallest format that holds a checkpoint's matrices as they are.

    One that can carry the blocks of a GGUF file where it carries those of all layers' matrices,
    bf16 where every tensor is that, else f32: float16 and mixtures fit no other without rounding.

    Raises:
        WeightsError: the folder has no weights.
    """
    stored = index_folder(folder)
    kinds = {
        tensor.dtype
        for name, tensor in stored.items()
        if ".layers." in name and name.endswith("_proj.weight")
    }
    fitting = [form for form in FORMATS.values() if kinds and kinds <= form.carry.keys()]
    if fitting:
        return min(fitting, key=lambda form: form.bytes_per_weight).name
    return "bf16" if {tensor.dtype for tensor in stored.values()} == {"BF16"} else "f32"
