"""What a server calls besides a forward pass, ahead of its requests: sampling, and what looks need.

On an empty cache another process compiles it, while this one compiles the forward pass.
"""

from __future__ import annotations

from tinyllm.kernels import drawing, plain_linear
from tinyllm.kernels.machine_code import compile_beside


def prepare() -> None:
    """Load all of it from disk, or compile it."""
    drawing.prepare()
    plain_linear.prepare()


def prepare_beside() -> None:
    """Start to compile what isn't on disk in another process; whoever calls it then waits."""
    calls = {**drawing.calls(), **plain_linear.calls()}
    compile_beside(calls, f"from {__name__} import prepare; prepare()")
