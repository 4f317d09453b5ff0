"""Which format a checkpoint's weights are in already: `--dtype auto` computes in that one.

Rounding weights anew changes answers, whatever the new format (`tinyllm quality` counts them), so
nothing is rounded unless it is asked for.
"""

from __future__ import annotations

from pathlib import Path

from tinyllm.kernels.formats import FORMATS, Dtype
from tinyllm.weights import index_folder

MATRICES = ("_proj.weight", ".w1.weight", ".w2.weight", ".w3.weight")  # the latter are Mixtral's
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def own_format(folder: Path) -> Dtype:
    """The smallest format that holds a checkpoint's matrices as they are.

    Of a GGUF file's blocks it carries those of all layers' matrices, and of the table where that is
    of blocks, too; `gguf` does for most mixtures. bf16 where every tensor is that, else f32.

    Raises:
        WeightsError: the folder has no weights.
    """
    stored = index_folder(folder)
    kinds = {
        tensor.dtype
        for name, tensor in stored.items()
        if ".layers." in name and name.endswith(MATRICES)
    }
    blocks = FORMATS["gguf"].carry.keys()
    tables = {tensor.dtype for name, tensor in stored.items() if name in TABLES} & blocks
    fitting = [
        form
        for form in FORMATS.values()
        if kinds and kinds <= form.carry.keys() and tables <= FORMATS[form.table].carry.keys()
    ]
    if fitting:
        return min(fitting, key=lambda form: form.bytes_per_weight).name
    return "bf16" if {tensor.dtype for tensor in stored.values()} == {"BF16"} else "f32"
