"""What a grammar costs beside a decode step, at the median.

    python tests/scripts/bench_masks.py

Decodes JSON under several schemas with the default model, and times each step's mask (`allowed`,
`forced`, `accept`) and forward by themselves.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tinyllm
from tinyllm.api.constraints.grammar import Grammars, json_grammar
from tinyllm.api.constraints.guides import ChoiceGuide
from tinyllm.runner import Segment
from tinyllm.sampler import Sampler, SamplingParams

SCHEMAS: dict[str, dict[str, Any]] = {
    "one string": {"type": "object", "properties": {"location": {"type": "string"}}},
    "any object": {"type": "object"},
    "100 properties": {
        "type": "object",
        "properties": {f"p{i}": {"type": ("string", "integer")[i % 2]} for i in range(100)},
        "required": [f"p{i}" for i in range(100)],
    },
    "recursion": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["name", "children"],
            }
        },
    },
    "union": {"type": "array", "items": {"anyOf": [{"type": "number"}, {"enum": ["a", "b", "c"]},
                                                   {"type": "string", "format": "date"}]}},
}  # fmt: skip
N_TOKENS = 150


def main() -> None:
    lm = tinyllm.load(dtype="q8")
    vocab_size, eos = lm.config.vocab_size, lm.tokenizer.eos_ids
    started = time.perf_counter()
    grammars = Grammars(lm.tokenizer, vocab_size, eos)
    print(f"reading the vocabulary: {1e3 * (time.perf_counter() - started):.0f} ms, once")
    prompt = lm.encode_prompt([{"role": "user", "content": "Answer with a long JSON value."}])
    steps: list[float] = []
    print(
        f"{'schema':16} {'compile':>9} {'mask p50':>9} {'mask p99':>9} {'step p50':>9} {'share':>6}"
    )
    for name, schema in SCHEMAS.items():
        grammar = json_grammar(schema)
        started = time.perf_counter()
        grammars.compile(grammar)
        compiled = time.perf_counter() - started
        guide = ChoiceGuide(
            lm.tokenizer, None, grammars.compile(grammar).matcher(), (), frozenset(eos)
        )
        sampler = Sampler(SamplingParams(temperature=1.0, seed=1))
        cache = lm.runner.new_cache(len(prompt) + N_TOKENS)
        (logits,) = lm.runner.forward_batch([Segment(np.array(prompt, np.int32), cache)])
        masks, own_steps = [], []
        for _ in range(N_TOKENS):
            t0 = time.perf_counter()
            allowed, forced = guide.allowed(), guide.forced()
            t1 = time.perf_counter()
            token = sampler.pick(logits[-1], allowed, next(iter(forced), None)).token
            t2 = time.perf_counter()
            done = guide.accept(token)
            t3 = time.perf_counter()
            masks.append(t1 - t0 + t3 - t2)
            if done:
                break
            t4 = time.perf_counter()
            (logits,) = lm.runner.forward_batch([Segment(np.array([token], np.int32), cache)])
            own_steps.append(time.perf_counter() - t4)
        cache.free()
        steps += own_steps
        mask, step = statistics.median(masks), statistics.median(own_steps or steps)
        print(
            f"{name:16} {1e3 * compiled:6.1f} ms {1e6 * mask:6.0f} µs "
            f"{1e6 * float(np.percentile(masks, 99)):6.0f} µs {1e3 * step:6.2f} ms "
            f"{100 * mask / step:5.1f} %"
        )
    print(json.dumps({"step_ms_median": round(1e3 * statistics.median(steps), 3)}))


if __name__ == "__main__":
    main()
