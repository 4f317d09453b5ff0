"""`tinyllm bench`: how fast a model runs here, beside what the machine can do, beside a peer.

Speeds of a shared machine swing by a third from hour to hour, so a peer is timed in the same run,
turn by turn with ours, and what counts is the ratio of the medians.
"""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tinyllm.compiled import CompiledModel
from tinyllm.config import ModelConfig
from tinyllm.errors import TinyllmError
from tinyllm.kernels import processor
from tinyllm.kernels.formats import FORMATS
from tinyllm.kernels.paged import PagedCache
from tinyllm.measure import machine
from tinyllm.measure.ops import time_operations
from tinyllm.measure.profile import print_profile, profile
from tinyllm.runner import Segment

PROMPT_CONTEXT = 16  # tokens before the first that is timed, unless asked otherwise
BATCH_STEPS = 32  # of a batch, at most
ROUNDS = 7
ENOUGH = 40.0  # seconds of rounds; a slow processor has done fewer than ROUNDS by then


@dataclass(frozen=True)
class BenchOptions:
    """What to measure; tokens, sequences and rounds are counts."""

    dtype: str = "q8"
    threads: int = 2
    prefill: int = 512
    decode: int = 128
    batch: int = 16
    context: int = PROMPT_CONTEXT
    rounds: int | None = None  # None: ROUNDS, or as many as ENOUGH seconds hold, at least one
    busy: bool = False  # once more with another process keeping one core busy
    profile: bool = False  # each operation within a call, too
    peer: Path | None = None  # llama-bench
    peer_models: list[Path] = field(default_factory=list)

    @property
    def most_rounds(self) -> int:
        """As many as were asked for."""
        return self.rounds or ROUNDS


def run(folder: Path, options: BenchOptions, progress: Callable[[str], None]) -> dict[str, Any]:
    """All measurements, as one JSON-able dictionary; medians of the rounds."""
    config = ModelConfig.from_folder(folder)
    longest = max(options.context + options.decode, options.prefill)
    if longest > config.max_seq_len:
        raise TinyllmError(
            f"--context and --decode come to {longest} tokens, but the model holds "
            f"{config.max_seq_len}"
        )
    tokens_held = longest + options.batch * (128 + options.context) + options.prefill
    model = CompiledModel(
        config,
        folder,
        options.dtype,
        options.threads,
        kv_cache_mb=kv_megabytes(config, tokens_held),
    )
    ours: dict[str, list[float]] = {"decode": [], "prefill": [], "batch_decode": []}
    peers: dict[str, dict[str, list[float]]] = {
        path.name: {"decode": [], "prefill": []} for path in options.peer_models
    }
    progress("reading the prompts")
    streams = start_streams(model, options)
    short = replace(options, prefill=min(options.prefill, 64), decode=min(options.decode, 4))
    measure(model, short, ours, streams)  # warm up
    for times in ours.values():
        times.clear()
    bandwidth = []
    for i in rounds_of(options):
        progress(f"round {i + 1} of {options.most_rounds}: ours")
        measure(model, options, ours, streams)
        bandwidth.append(machine.read_bandwidth(options.threads, repeats=2))
        for path in options.peer_models:
            progress(f"round {i + 1} of {options.most_rounds}: {path.name}")
            for name, speed in time_peer(options, path).items():
                peers[path.name][name].append(speed)
    speeds = {name: statistics.median(times) for name, times in ours.items() if times}
    result: dict[str, Any] = {
        "dtype": options.dtype,
        "threads": options.threads,
        "rounds": len(bandwidth),
        **{f"{name}_tokens_per_s": speed for name, speed in speeds.items()},
    }
    read = model.nbytes + kv_bytes(model, options.context + options.decode // 2)
    limit = statistics.median(bandwidth)
    peak = machine.peaks(options.threads)
    kind = FORMATS[options.dtype].arithmetic
    operations = matrix_operations(config) * FORMATS[options.dtype].products
    result |= {
        "bytes_per_token": read,
        "operations_per_token": operations,
        "machine_read_gb_per_s": limit / 1e9,
        "machine_gop_per_s": {name: value / 1e9 for name, value in peak.items()},
    }
    if "decode" in speeds:
        result["read_gb_per_s"] = read * speeds["decode"] / 1e9
        result["share_of_bandwidth"] = read * speeds["decode"] / limit
    if "prefill" in speeds:
        result["prefill_gop_per_s"] = operations * speeds["prefill"] / 1e9
        if peak:
            result["share_of_peak"] = operations * speeds["prefill"] / peak[kind]
    progress("each operation by itself")
    result["operations"] = time_operations(model, limit, peak.get(kind))
    if options.profile:
        progress("where the time goes")
        limits = {"bandwidth": limit, **({"peak": peak[kind]} if kind in peak else {})}
        result["profile"] = profile(model, options.context, options.most_rounds, limits)
    if options.busy:
        progress("beside a busy core")
        result["decode_beside_a_busy_core_tokens_per_s"] = beside_busy(model, options)
    if peers:
        result["peers"] = compare(speeds, peers)
    result["environment"] = environment(options)
    return result


def rounds_of(options: BenchOptions) -> Iterator[int]:
    """The numbers of the rounds; ends early once another one would take it past ENOUGH seconds.

    Not beside a peer, nor where the rounds were asked for.
    """
    start = time.monotonic()
    for i in range(options.most_rounds):
        spent = time.monotonic() - start
        if i and not options.rounds and not options.peer and spent * (i + 1) / i > ENOUGH:
            return
        yield i


def prompt_of(model: CompiledModel, length: int) -> NDArray[np.int32]:
    """So many tokens, of which none is special."""
    return np.resize(np.arange(100, model.config.vocab_size, dtype=np.int32), length)


def start_streams(model: CompiledModel, options: BenchOptions) -> list[PagedCache]:
    """The sequences of a batch, each with a prompt read."""
    streams = [model.new_cache(options.context + BATCH_STEPS) for _ in range(options.batch)]
    for stream in streams:
        model.forward(prompt_of(model, options.context), stream, logits="none")
    return streams


def measure(
    model: CompiledModel,
    options: BenchOptions,
    times: dict[str, list[float]],
    streams: Sequence[PagedCache],
) -> None:
    """One turn of each of our measurements, in tokens a second; `streams` have read a prompt."""
    tokens = prompt_of(model, max(options.decode, BATCH_STEPS))
    with cache_of(model, options.context + options.decode) as cache:
        if options.decode:
            model.forward(prompt_of(model, options.context), cache, logits="none")
            start = time.perf_counter()
            for i in range(options.decode):
                model.forward(tokens[i : i + 1], cache)
            times["decode"].append(options.decode / (time.perf_counter() - start))
    with cache_of(model, options.prefill) as cache:
        if options.prefill:
            start = time.perf_counter()
            model.forward(prompt_of(model, options.prefill), cache)
            times["prefill"].append(options.prefill / (time.perf_counter() - start))
    if streams:
        steps = max(1, min(BATCH_STEPS, options.decode))
        start = time.perf_counter()
        for i in range(steps):
            model.forward_batch([Segment(tokens[i : i + 1], cache) for cache in streams])
        times["batch_decode"].append(steps * len(streams) / (time.perf_counter() - start))
        for stream in streams:
            stream.truncate(options.context)


@contextmanager
def cache_of(model: CompiledModel, capacity: int) -> Iterator[Any]:
    """A cache that gives its pages back."""
    cache = model.new_cache(capacity)
    try:
        yield cache
    finally:
        cache.free()


def beside_busy(model: CompiledModel, options: BenchOptions) -> float:
    """Decoded tokens a second while another process keeps one core busy; median of the rounds."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        only_decode = BenchOptions(
            decode=options.decode, context=options.context, prefill=0, batch=0
        )
        times: dict[str, list[float]] = {"decode": []}
        for _ in range(options.most_rounds):
            measure(model, only_decode, times, [])
        return statistics.median(times["decode"])
    finally:
        busy.kill()
        busy.wait()


def time_peer(options: BenchOptions, path: Path) -> dict[str, float]:
    """One run of llama-bench over a GGUF file: tokens a second of prefill and decode."""
    command = [str(options.peer), "-m", str(path), "-t", str(options.threads), "-r", "1"]
    command += ["-p", str(options.prefill), "-n", str(options.decode), "-o", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows = json.loads(done.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        raise TinyllmError(f"{' '.join(command)} failed: {detail.strip()[-500:]}") from None
    return {"prefill" if row["n_prompt"] else "decode": float(row["avg_ts"]) for row in rows}


def compare(
    speeds: dict[str, float], peers: dict[str, dict[str, list[float]]]
) -> dict[str, dict[str, float]]:
    """Each peer's medians, and ours over them."""
    compared: dict[str, dict[str, float]] = {}
    for name, times in peers.items():
        compared[name] = {}
        for what, values in times.items():
            if values and what in speeds:
                median = statistics.median(values)
                compared[name][f"{what}_tokens_per_s"] = median
                compared[name][f"{what}_ratio"] = speeds[what] / median
    return compared


def matrix_operations(config: ModelConfig) -> int:
    """Multiplications and additions in the layers' matrices for one token (prefill: no logits)."""
    width = config.n_heads * config.head_dim
    kv = config.n_kv_heads * config.head_dim
    layer = config.dim * (2 * width + 2 * kv) + 3 * config.dim * config.hidden_dim
    return 2 * layer * config.n_layers


def kv_bytes(model: CompiledModel, context: int) -> int:
    """Bytes of keys and values that a token at this position reads."""
    return context * model.pool.page_nbytes // model.pool.page_size


def kv_megabytes(config: ModelConfig, n_tokens: int) -> int:
    """Room for so many tokens at 4 bytes a number."""
    per_token = 2 * config.n_layers * config.n_kv_heads * config.head_dim * 4
    return int(n_tokens * per_token * 1.5 / 1e6) + 64


def environment(options: BenchOptions) -> dict[str, str]:
    """What a quoted figure must carry: machine, versions, date."""
    found = {
        "processor": machine.name(),
        "kind": processor.NAME,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    if options.peer:
        done = subprocess.run([options.peer, "--help"], capture_output=True, text=True, check=False)
        found["peer"] = options.peer.name if done.returncode == 0 else "?"
    return found


def print_result(result: dict[str, Any], console: Console) -> None:
    """The same for people."""
    kind = result["environment"]["kind"]
    console.print(
        f"{result['dtype']} on {result['threads']} threads, {kind} kernels; "
        f"medians of {result['rounds']} rounds",
        style="bold",
    )
    for name in ("decode", "prefill", "batch_decode", "decode_beside_a_busy_core"):
        if (speed := result.get(f"{name}_tokens_per_s")) is not None:
            console.print(f"{name.replace('_', ' '):>26}  {speed:8.1f} tokens/s")
    if "read_gb_per_s" in result:
        console.print(
            f"{'read while decoding':>26}  {result['read_gb_per_s']:8.1f} GB/s, "
            f"{result['share_of_bandwidth']:.0%} of {result['machine_read_gb_per_s']:.1f}"
        )
    if "prefill_gop_per_s" in result:
        share = f", {result['share_of_peak']:.0%} of peak" if "share_of_peak" in result else ""
        console.print(f"{'prefill':>26}  {result['prefill_gop_per_s']:8.0f} Gop/s{share}")
    table = Table("operation", "rows", "µs", "GB/s", "of bandwidth", "Gop/s", "of peak")
    for op in result["operations"]:
        peak = f"{op['share_of_peak']:.0%}" if "share_of_peak" in op else ""
        table.add_row(
            op["operation"], str(op["rows"]), f"{op['microseconds']:.1f}",
            f"{op['gb_per_s']:.1f}", f"{op['share_of_bandwidth']:.0%}",
            f"{op['gop_per_s']:.0f}", peak,
        )  # fmt: skip
    console.print(table)
    for name, call in result.get("profile", {}).items():
        print_profile(name, call, console)
    for name, peer in result.get("peers", {}).items():
        for what in ("decode", "prefill"):
            if f"{what}_ratio" in peer:
                console.print(
                    f"{name}: {what} {peer[f'{what}_tokens_per_s']:.1f} tokens/s; "
                    f"ours is {peer[f'{what}_ratio']:.2f} times that"
                )
    console.print(", ".join(f"{key} {value}" for key, value in result["environment"].items()))
