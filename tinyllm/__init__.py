"""tinyllm: a transformer runtime in Python and numpy that you can read, step through and serve.

Read it in the order in which a token meets it: config, weights, tokenizer, model (with
kernels.reference), kv_cache, sampler, decode. Then the fast path, kernels and compiled; then the
server, engine and api.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from tinyllm.errors import TinyllmError

if TYPE_CHECKING:
    from tinyllm.inside.architecture import compare
    from tinyllm.lm import LM, load
    from tinyllm.sampler import SamplingParams

__all__ = ["LM", "SamplingParams", "TinyllmError", "compare", "load"]

try:
    __version__ = version("tinyllm")
except PackageNotFoundError:  # a checkout that isn't installed
    __version__ = "0+checkout"


# `from tinyllm import lab`: modules of the room `inside` that notebooks use by name.
INSIDE = ("causal", "explain", "hooks", "lab", "pictures", "trace_file")


def __getattr__(name: str) -> object:
    """Import on first use, so that `python server.py --help` needn't wait for numpy."""
    if name in ("LM", "load"):
        from tinyllm import lm

        return getattr(lm, name)
    if name == "SamplingParams":
        from tinyllm.sampler import SamplingParams

        return SamplingParams
    if name == "compare":
        from tinyllm.inside.architecture import compare

        return compare
    if name in INSIDE:
        return import_module(f"tinyllm.inside.{name}")
    raise AttributeError(f"module 'tinyllm' has no attribute {name!r}")
