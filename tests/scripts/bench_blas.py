"""How many BLAS threads the readable path should take: a prompt and decoding, quiet and busy.

    python tests/scripts/bench_blas.py --rounds 5           # on a quiet machine
    python tests/scripts/bench_blas.py --rounds 5 --busy 2  # beside two processes that never rest

Three ways in turn, a process each: one thread for the whole process (OPENBLAS_NUM_THREADS=1), one
thread around our own forwards alone (what `tinyllm.kernels.blas` does), and a thread a core. Prints
the medians and all figures. `kernels/blas.py` has what came of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

WAYS = ("whole process", "own calls", "a thread a core")
ONE_RUN = """
import json, sys, time
import tinyllm
from tinyllm.kernels import blas
if sys.argv[1] == "a thread a core":
    blas.THREADS = None  # threadpoolctl: leave it
lm = tinyllm.load(backend="reference")
ids = lm.encode_prompt("The keeper of the lighthouse had a habit of counting ships. " * 4)[:43]
took = {}
for name, n in (("prompt", 43), ("token", 1)):
    best = []
    for _ in range(3):
        cache = lm.model.new_cache(64)
        if n == 1:
            lm.model.forward(ids, cache, logits="none")
        start = time.perf_counter()
        for _ in range(8 if n == 1 else 1):
            lm.model.forward(ids[:n], cache, logits="last")
        best.append((time.perf_counter() - start) / (8 if n == 1 else 1))
    took[name] = min(best)
print(json.dumps(took))
"""


def one_run(way: str) -> dict[str, float]:
    """Seconds of a prompt of 43 tokens and of one token, in a process of its own."""
    env = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    if way == WAYS[0]:
        env["OPENBLAS_NUM_THREADS"] = "1"
    run = subprocess.run(
        [sys.executable, "-c", ONE_RUN, way], env=env, check=True, capture_output=True, text=True
    )
    took: dict[str, float] = json.loads(run.stdout)
    return took


def main() -> None:
    """Time all ways in turn, and print what they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--busy", type=int, default=0, help="so many processes that never rest beside it"
    )
    args = parser.parse_args()
    beside = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)
    ]
    took: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    try:
        for _ in range(args.rounds):
            for way in WAYS:
                took[way].append(one_run(way))
    finally:
        for process in beside:
            process.kill()
    for way, runs in took.items():
        for name in ("prompt", "token"):
            all_ms = [1e3 * run[name] for run in runs]
            median, rounded = statistics.median(all_ms), [round(ms) for ms in all_ms]
            print(f"{way:16} {name:7} median {median:6.0f} ms of {rounded}")


if __name__ == "__main__":
    main()
