"""The table of ratios: every weight format beside llama.cpp and torch, interleaved in one run.

    python -m tests.scripts.bench_table --llama BIN_FOLDER --gguf FOLDER [--rounds 7] [--torch]

`--gguf` holds smollm2-{F32,BF16,Q8_0,Q4_0,Q4_1}.gguf; BIN_FOLDER llama-bench and
llama-batched-bench. A round times everything once, ours and theirs in turn; what is printed are
medians over the rounds, and ratios of medians. Give it the machine alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyllm import fetch
from tinyllm.compiled import CompiledModel
from tinyllm.config import ModelConfig
from tinyllm.measure import machine
from tinyllm.measure.bench import (
    BenchOptions,
    beside_busy,
    environment,
    kv_bytes,
    measure,
    start_streams,
)

PREFILL, DECODE, BATCH, THREADS = 512, 128, 16, 2
FORMATS = {"f32": ["F32"], "bf16": ["BF16"], "q8": ["Q8_0"], "q4": ["Q4_0", "Q4_1"]}
LONG = 4096


def llama_bench(program: Path, model: Path) -> dict[str, float]:
    """Tokens a second of prefill and decode."""
    command = [program, "-m", model, "-t", THREADS, "-p", PREFILL, "-n", DECODE, "-r", 1]
    done = subprocess.run(
        [*map(str, command), "-o", "json"], capture_output=True, text=True, check=True
    )
    rows = json.loads(done.stdout)
    return {"prefill" if row["n_prompt"] else "decode": float(row["avg_ts"]) for row in rows}


def llama_batch(program: Path, model: Path) -> float:
    """Tokens a second of 16 streams together."""
    command = [program, "-m", model, "-t", THREADS, "-c", 4096, "-npp", 16, "-ntg", 32]
    command += ["-npl", BATCH, "--output-format", "jsonl"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return float(json.loads(lines[-1])["speed_tg"])


def torch_prefill(folder: Path) -> dict[str, Callable[[], float]]:
    """Prefill of transformers' Llama, by dtype."""
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    ids = torch.arange(100, 100 + PREFILL)[None]
    timers = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = transformers.LlamaForCausalLM.from_pretrained(
            folder, dtype=dtype, gguf_file="model.gguf"
        ).eval()

        def run(model: Any = model) -> float:
            with torch.inference_mode():
                start = time.perf_counter()
                model(ids, logits_to_keep=1)
                return PREFILL / (time.perf_counter() - start)

        run()
        timers[f"torch {str(dtype).removeprefix('torch.')}"] = run
    return timers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch", action="store_true")
    options = parser.parse_args()

    folder = fetch.ensure("smollm2-135m-instruct")
    config = ModelConfig.from_folder(folder)
    models = {
        dtype: CompiledModel(config, folder, dtype, THREADS, kv_cache_mb=512) for dtype in FORMATS
    }
    bench = BenchOptions(threads=THREADS, prefill=PREFILL, decode=DECODE, batch=BATCH)
    long = BenchOptions(threads=THREADS, prefill=0, decode=24, batch=0, context=LONG)
    at_4096: dict[str, list[float]] = defaultdict(list)
    streams = {dtype: start_streams(model, bench) for dtype, model in models.items()}
    for dtype, model in models.items():
        measure(model, bench, defaultdict(list), streams[dtype])
    timers = torch_prefill(folder) if options.torch else {}
    seen: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for i in range(options.rounds):
        print(f"round {i + 1} of {options.rounds}", file=sys.stderr, flush=True)
        seen["machine"]["bandwidth"].append(machine.read_bandwidth(THREADS, repeats=2))
        for dtype, names in FORMATS.items():
            measure(models[dtype], bench, seen[dtype], streams[dtype])
            for name in names:
                path = options.gguf / f"smollm2-{name}.gguf"
                for what, value in llama_bench(options.llama / "llama-bench", path).items():
                    seen[name][what].append(value)
                program = options.llama / "llama-batched-bench"
                seen[name]["batch_decode"].append(llama_batch(program, path))
        for name, run in timers.items():
            seen[name]["prefill"].append(run())
        if i < 3:
            measure(models["q8"], long, at_4096, [])
    seen["q8"]["decode at 4096"] = at_4096["decode"]
    seen["q8"]["decode beside a busy core"].append(
        beside_busy(models["q8"], BenchOptions(decode=DECODE, rounds=5))
    )
    middle = {
        who: {what: statistics.median(v) for what, v in values.items()}
        for who, values in seen.items()
    }
    q8 = middle["q8"]
    read = models["q8"].nbytes + kv_bytes(models["q8"], bench.context + DECODE // 2)
    ours = [middle[dtype] for dtype in FORMATS]
    theirs = [middle[name] for names in FORMATS.values() for name in names]
    ratios = {
        f"decode {dtype} / llama.cpp {' and '.join(names)}": middle[dtype]["decode"]
        / max(middle[name]["decode"] for name in names)
        for dtype, names in FORMATS.items()
    }
    best = max(row["prefill"] for row in theirs)
    if timers:
        best = max(best, middle["torch bfloat16"]["prefill"])
        ratios["prefill f32 / torch f32"] = (
            middle["f32"]["prefill"] / middle["torch float32"]["prefill"]
        )
    ratios["prefill, best / best peer"] = max(row["prefill"] for row in ours) / best
    ratios["16 streams, best / llama.cpp's best"] = max(row["batch_decode"] for row in ours) / max(
        row["batch_decode"] for row in theirs
    )
    ratios["q8 beside a busy core / quiet"] = q8["decode beside a busy core"] / q8["decode"]
    ratios["q8 at 4,096 / at 16"] = q8["decode at 4096"] / q8["decode"]
    ratios["q8 bytes read / bandwidth"] = read * q8["decode"] / middle["machine"]["bandwidth"]
    print(
        json.dumps(
            {"medians": middle, "ratios": ratios, "environment": environment(bench)}, indent=1
        )
    )


if __name__ == "__main__":
    main()
