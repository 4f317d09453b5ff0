"""`tinyllm bench --profile`: where a call's time goes, operation by operation, thread by thread.

Everything is measured in the call itself (`kernels/timeline.py`), with the other operations around
it and with what the caches hold then; `ops.py` times each operation by itself.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tinyllm.compiled import CompiledModel
from tinyllm.kernels.dispatch import n_blocks, n_matrices
from tinyllm.kernels.formats import FORMATS
from tinyllm.kernels.layout import BLOCK, GROUP
from tinyllm.kernels.timeline import Timeline, timed

PROMPT = 256  # tokens of the call that stands for reading a prompt: the most that one call takes


class Work(NamedTuple):
    """What an operation has to do in one call, all layers together."""

    nbytes: int  # of weights, or of keys and values, each counted once
    operations: int  # multiplications and additions, as the kernels do them


def work(model: CompiledModel, rows: int, behind: int) -> dict[str, Work]:
    """Operation → its work, for one call of `rows` tokens with `behind` tokens in the cache.

    The logits are one row's. Each row attends to all before it and itself. Of experts the bytes are
    those of as many as the rows can choose.
    """
    config, arrays = model.config, model.arrays
    products = FORMATS[model.dtype].products
    widths = {
        "qkv": config.dim,
        "out": config.n_heads * config.head_dim,
        "gate_up": config.dim,
        "down": config.hidden_dim,
        "head": config.dim,
    }
    found = {}
    for name, width in widths.items():
        w = getattr(arrays, name)
        if w is not None:
            nbytes = sum(array.nbytes for array in w)
            inputs = -(-width // GROUP) * GROUP
            n = 1 if name == "head" else rows
            outputs = n_matrices(w) * n_blocks(w) * BLOCK
            found[name] = Work(nbytes, 2 * products * outputs * inputs * n)
    if config.experts is not None:
        n, k = config.experts.n, config.experts.k
        inner = {"gate_up": config.dim, "down": config.experts.hidden_dim}
        for name, width in inner.items():
            w, plain = getattr(arrays.experts, name), found.get(name, Work(0, 0))
            nbytes = sum(array.nbytes for array in w) * min(n, rows * k) // n
            outputs = n_matrices(w) // n * n_blocks(w) * BLOCK
            done = 2 * products * outputs * width * rows * k
            found[name] = Work(plain.nbytes + nbytes, plain.operations + done)
    kv = (behind + rows) * model.pool.page_nbytes // model.pool.page_size
    seen = rows * behind + rows * (rows + 1) // 2
    width = config.n_heads * config.head_dim
    found["attention"] = Work(kv, 4 * config.n_layers * width * seen)
    return found


def operations(timeline: Timeline, work_of: dict[str, Work], limits: dict[str, float]) -> Any:
    """Operation → microseconds and speeds, the longest first; from one timeline.

    Args:
        timeline: of one call.
        work_of: what `work` says of that call.
        limits: bytes a second (`bandwidth`), and operations a second (`peak`) of the matrices.
    """
    found: list[dict[str, Any]] = []
    for name, share in timeline.shares().items():
        seconds = share * timeline.nanoseconds / 1e9  # of each thread, in the mean
        one: dict[str, Any] = {"operation": name, "microseconds": seconds * 1e6, "share": share}
        if name in work_of and seconds > 0:
            nbytes, done = work_of[name]
            one["gb_per_s"] = nbytes / seconds / 1e9
            one["gop_per_s"] = done / seconds / 1e9
            one["operations_per_byte"] = done / nbytes
            if "peak" in limits and name != "attention":
                roof = min(limits["peak"], limits["bandwidth"] * done / nbytes)
                one["share_of_roof"] = done / seconds / roof
        found.append(one)
    return {
        "microseconds": timeline.nanoseconds / 1e3,
        "threads": timeline.n_threads,
        "operations": sorted(found, key=lambda one: -float(one["microseconds"])),
    }


def timelines(
    model: CompiledModel, prompt: NDArray[np.int32], behind: int, rows: int, rounds: int
) -> tuple[list[Timeline], float]:
    """Calls of `rows` tokens behind `behind` others, timed, each beside one that isn't.

    Returns:
        the timelines, and what noting costs: the median of the calls' times over that of the
        others, less 1.
    """
    found, on, off = [], [], []
    cache = model.new_cache(behind + rows)
    try:
        model.forward(prompt[:behind], cache, logits="none")
        for _ in range(rounds):
            start = time.perf_counter()
            model.forward(prompt[behind : behind + rows], cache)
            off.append(time.perf_counter() - start)
            cache.truncate(behind)
            with timed(model) as timeline:
                start = time.perf_counter()
                model.forward(prompt[behind : behind + rows], cache)
                on.append(time.perf_counter() - start)
            cache.truncate(behind)
            found.append(timeline)
    finally:
        cache.free()
    return found, statistics.median(on) / statistics.median(off) - 1


def middle(found: Sequence[Timeline]) -> Timeline:
    """The one whose time is the median."""
    return sorted(found, key=lambda timeline: timeline.nanoseconds)[len(found) // 2]


def profile(
    model: CompiledModel, context: int, rounds: int, limits: dict[str, float]
) -> dict[str, Any]:
    """One decoded token behind `context` others, and a prompt: the call of the median time each."""
    vocabulary = model.config.vocab_size
    longest = min(PROMPT, model.config.max_seq_len)
    tokens = np.resize(np.arange(min(100, vocabulary - 1), vocabulary, dtype=np.int32),
                       max(context + 1, longest))  # fmt: skip
    found = {}
    for name, behind, rows, times in (
        ("decode", context, 1, 8 * rounds),
        ("prefill", 0, longest, rounds),
    ):
        runs, cost = timelines(model, tokens, behind, rows, times)
        found[name] = {
            "tokens": rows,
            "cost_of_noting": cost,
            **operations(middle(runs), work(model, rows, behind), limits),
        }
    return found


def print_profile(name: str, call: dict[str, Any], console: Console) -> None:
    """One call's operations for people."""
    table = Table(f"in one call: {name}", "µs", "of the time", "GB/s", "Gop/s", "of the roof")
    for one in call["operations"]:
        roof = f"{one['share_of_roof']:.0%}" if "share_of_roof" in one else ""
        speeds = [f"{one[s]:.1f}" if s in one else "" for s in ("gb_per_s", "gop_per_s")]
        table.add_row(
            one["operation"], f"{one['microseconds']:.0f}", f"{one['share']:.1%}", *speeds, roof
        )
    console.print(table)
    console.print(
        f"{call['tokens']} token{'s' * (call['tokens'] > 1)}, {call['microseconds']:.0f} µs on "
        f"{call['threads']} threads; noting the times costs {call['cost_of_noting']:+.1%}"
    )
