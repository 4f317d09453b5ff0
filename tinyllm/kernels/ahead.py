"""What a server calls besides a forward pass, ahead of its requests: sampling, and what looks need.

On an empty cache another process compiles it, while this one compiles the forward pass.
"""

from __future__ import annotations

from tinyllm.kernels import drawing, plain_linear
from tinyllm.kernels.machine_code import Calls, compile_beside


def prepare() -> None:
    """Load all of it from disk, or compile it."""
    drawing.prepare()
    plain_linear.prepare()


def prepare_beside() -> None:
    """Start to compile what isn't on disk in another process; whoever calls it then waits."""
    compile_beside(_calls(), f"from {__name__} import compile_missing; compile_missing()")


def compile_missing() -> None:
    """What that process does. It leaves alone what is on disk.

    Nobody reads what it prints, and a damaged file is to be told of: whoever loads it does that.
    """
    for kernel, args in _calls().items():
        if not kernel.on_disk(args):
            kernel.linked(args)


def _calls() -> Calls:
    """The kernels, each with arguments of the types that it is called with."""
    return {**drawing.calls(), **plain_linear.calls()}
