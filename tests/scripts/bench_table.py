"""The table of ratios: every weight format beside llama.cpp and torch, interleaved in one run.

    python -m tests.scripts.bench_table [--llama BIN_FOLDER --gguf FOLDER] [--torch] [--write]

Without options it times ours alone. `--gguf` holds smollm2-{F32,BF16,Q8_0,Q4_0,Q4_1}.gguf;
BIN_FOLDER llama-bench and llama-batched-bench. A round times everything once, ours and theirs in
turn; what is printed, and written to tinyllm/measure/README.md with `--write`, are medians over the
rounds, and ratios of medians. Give it the machine alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
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

PAGE = Path(__file__).parents[2] / "tinyllm" / "measure" / "README.md"
BEGIN, END = "<!-- speed: python -m tests.scripts.bench_table --write -->\n", "<!-- /speed -->"

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
    timers: dict[str, Callable[[], float]] = {}
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
    parser.add_argument("--llama", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--write", action="store_true", help="put the tables on the page")
    options = parser.parse_args()
    peers = FORMATS if options.llama and options.gguf else {}

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
        for dtype in FORMATS:
            measure(models[dtype], bench, seen[dtype], streams[dtype])
            for name in peers.get(dtype, ()):
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
    ratios = {
        "q8 decode, bytes read / the memory's speed": read
        * q8["decode"]
        / middle["machine"]["bandwidth"],
        "q8 decode beside a busy core / alone": q8["decode beside a busy core"] / q8["decode"],
        "q8 decode behind 4,096 tokens / behind 16": q8["decode at 4096"] / q8["decode"],
    }
    for dtype, names in peers.items():
        fastest = max(middle[name]["decode"] for name in names)
        ratios[f"decode {dtype} / llama.cpp's {' or '.join(names)}"] = (
            middle[dtype]["decode"] / fastest
        )
    others = [row for who, row in middle.items() if who not in FORMATS]
    for title, what in (("prefill", "prefill"), ("16 streams", "batch_decode")):
        theirs = [row[what] for row in others if what in row]
        if theirs:
            ours = max(middle[dtype][what] for dtype in FORMATS)
            ratios[f"{title}, our best / the best peer's"] = ours / max(theirs)
    page = markdown(middle, ratios, environment(bench), options.rounds)
    print(page)
    if options.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(before + BEGIN + page + END + rest.partition(END)[2], encoding="utf-8")


def markdown(
    middle: Mapping[str, Mapping[str, float]],
    ratios: Mapping[str, float],
    made: Mapping[str, str],
    rounds: int,
) -> str:
    """The page's tables: tokens a second, then ratios, below when and where they were made."""
    lines = [
        f"{made['date']}: {made['processor']}, kernels of kind {made['kind']}, {THREADS} threads; "
        f"medians of {rounds} rounds; Python {made['python']}, numpy {made['numpy']}, numba "
        f"{made['numba']}.",
        "",
        f"| | decode, 1 stream | prefill, {PREFILL} tokens | decode, {BATCH} streams |",
        "|---|---|---|---|",
    ]
    for who, row in middle.items():
        if who != "machine":
            name = f"**{who}**" if who in FORMATS else who if " " in who else f"llama.cpp {who}"
            cells = (row.get(what) for what in ("decode", "prefill", "batch_decode"))
            shown = " | ".join("" if value is None else f"{value:,.0f}" for value in cells)
            lines.append(f"| {name} | {shown} |")
    lines += ["", "| | |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in ratios.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
