"""tinyllm: a transformer runtime in Python and numpy that you can read, step through and serve.

Read it in the order in which a token meets it: config, weights, tokenizer, model (with
kernels.reference), kv_cache, sampler, decode. Then the fast path, kernels and compiled; then the
server, engine and api.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

from tinyllm.errors import TinyllmError

if TYPE_CHECKING:
    from tinyllm.inside.architecture import compare
    from tinyllm.lm import LM, load, reopen
    from tinyllm.sampler import SamplingParams

    __version__: str

__all__ = ["LM", "SamplingParams", "TinyllmError", "compare", "load", "reopen"]


# Modules by the names they had before they moved: `from tinyllm import lab` and
# `from tinyllm.trace_file import load_trace` go on to work.
MOVED = {
    "tinyllm.causal": "tinyllm.inside.causal",
    "tinyllm.display": "tinyllm.inside.display",
    "tinyllm.explain": "tinyllm.inside.explain",
    "tinyllm.hooks": "tinyllm.inside.hooks",
    "tinyllm.inspect_trace": "tinyllm.inside.inspect",
    "tinyllm.lab": "tinyllm.inside.lab",
    "tinyllm.pictures": "tinyllm.inside.pictures",
    "tinyllm.trace": "tinyllm.inside.replay",
    "tinyllm.trace_file": "tinyllm.inside.trace_file",
    "tinyllm.kernels.one_entry": "tinyllm.inside.one_entry",
    "tinyllm.connected": "tinyllm.vision.connected",
    "tinyllm.connector": "tinyllm.vision.connector",
    "tinyllm.image": "tinyllm.vision.image",
    "tinyllm.image_prompt": "tinyllm.vision.prompt",
    "tinyllm.preprocess": "tinyllm.vision.preprocess",
    "tinyllm.smolvlm": "tinyllm.vision.smolvlm",
    "tinyllm.vision_compiled": "tinyllm.vision.compiled",
    "tinyllm.vision_config": "tinyllm.vision.config",
    "tinyllm.bench": "tinyllm.measure.bench",
    "tinyllm.bench_ops": "tinyllm.measure.ops",
    "tinyllm.quality": "tinyllm.measure.quality",
    "tinyllm.kernels.machine": "tinyllm.measure.machine",
    "tinyllm.kernels.peak": "tinyllm.measure.peak",
    "tinyllm.chat": "tinyllm.terminal.chat",
    "tinyllm.cli": "tinyllm.terminal.cli",
    "tinyllm.stepper": "tinyllm.terminal.stepper",
    "tinyllm.api.app": "tinyllm.api.house.app",
    "tinyllm.api.serve": "tinyllm.api.house.serve",
    "tinyllm.api.settings": "tinyllm.api.house.settings",
}


class _Moved(MetaPathFinder, Loader):
    """Imports a module by its former name."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(MOVED[module.__name__])


sys.meta_path.append(_Moved())


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tinyllm")
    except PackageNotFoundError:  # a checkout that isn't installed
        return "0+checkout"


def __dir__() -> list[str]:
    """What there is to use, not what this file needs."""
    modules = [name for name in globals() if f"tinyllm.{name}" in sys.modules]
    return [*__all__, "__version__", *modules]


def __getattr__(name: str) -> object:
    """Import on first use, so that `python server.py --help` needn't wait for numpy."""
    if name == "__version__":
        return _version()
    if name in ("LM", "load", "reopen"):
        from tinyllm import lm

        return getattr(lm, name)
    if name == "SamplingParams":
        from tinyllm.sampler import SamplingParams

        return SamplingParams
    if name == "compare":
        from tinyllm.inside.architecture import compare

        return compare
    if f"tinyllm.{name}" in MOVED:
        return import_module(f"tinyllm.{name}")
    raise AttributeError(f"module 'tinyllm' has no attribute {name!r}")
