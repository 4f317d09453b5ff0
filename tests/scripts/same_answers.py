"""The default model's answers, to the bit, on every kind of processor that can be had here.

    python -m tests.scripts.same_answers                  # the kinds that this machine can be
    python -m tests.scripts.same_answers --arm ROOT       # and Arm's, emulated: an hour

For each format 24 greedy tokens and 24 seeded ones, as the server draws them. Tokens, their
log-probabilities and all logits are hashed, a process a kind and format; what differs from the
first kind's is a fault, and the exit code 1. ROOT is the folder of `on_arm.sh`, made if it isn't
there. `--kinds` and `--formats` name some of them; a line is printed as soon as it is known.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]
MODEL = "smollm2-135m-instruct"
FORMATS = ("f32", "bf16", "q8", "q4", "q8a8", "q4a8")
ARM = {"neon": "apple-m1", "neon-i8mm": "apple-m2"}
# Without fused multiply-adds, too: there `plain` has to make them.
OLD = {"plain, ivybridge": "ivybridge", "plain, nehalem": "nehalem"}
PROMPT = "Name three colours of the rainbow."
N_TOKENS = 24


def answers(dtype: str) -> dict[str, Any]:
    """What the model says, in this process: the kind, the tokens, and hashes of all numbers."""
    import numpy as np

    from tinyllm.engine.engine import Engine
    from tinyllm.engine.types import Done, Prompt, Request, Token, TraceParams
    from tinyllm.kernels import processor
    from tinyllm.lm import load
    from tinyllm.measure import verify
    from tinyllm.sampler import SamplingParams

    form: Any = dtype
    lm = load(MODEL, dtype=form, backend="compiled", threads=2, kv_cache_mb=64)
    chat = [{"role": "user", "content": PROMPT}]
    ids = np.array(lm.tokenizer.apply_chat_template(chat), np.int32)
    engine = Engine(lm.runner)
    engine.start()
    found: dict[str, Any] = {"kind": processor.NAME}
    for name, params in (
        ("greedy", SamplingParams(temperature=0)),
        ("seeded", SamplingParams(temperature=1.0, top_p=0.95, seed=11)),
    ):
        request = Request(
            name, Prompt(ids), params, N_TOKENS, top_logprobs=5, trace=TraceParams(logits=N_TOKENS)
        )
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        engine.submit(request, events.put)
        tokens = [event for event in iter(events.get, Done()) if isinstance(event, Token)]
        looks = [token.look for token in tokens if token.look is not None]
        logits = [look.logits for look in looks if look.logits is not None]
        assert len(tokens) == len(logits) == N_TOKENS
        said = [(token.logprob.hex(), [(i, p.hex()) for i, p in token.top]) for token in tokens]
        found[name] = {
            "tokens": [token.token for token in tokens],
            "text": lm.tokenizer.decode([token.token for token in tokens]),
            "logits": verify.run(partial(list, logits)),
            "logprobs": hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16],
        }
    engine.stop()
    return found


def elsewhere(kind: str, dtype: str, arm_root: str | None) -> dict[str, Any]:
    """`answers` of another process, on that kind of processor."""
    environment, command = dict(os.environ), [sys.executable]
    if kind in ARM:
        assert arm_root is not None
        command = [str(HERE / "tests/scripts/on_arm.sh"), arm_root]
        environment |= {"NUMBA_CPU_NAME": ARM[kind], "NUMBA_CPU_FEATURES": ""}
    elif kind in OLD:
        environment |= {"NUMBA_CPU_NAME": OLD[kind], "NUMBA_CPU_FEATURES": ""}
    environment["TINYLLM_SIMD"] = kind.partition(",")[0]
    command += ["-m", "tests.scripts.same_answers", "--one", dtype]
    done = subprocess.run(command, cwd=HERE, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arm", metavar="ROOT", help="a folder for on_arm.sh")
    parser.add_argument("--kinds", nargs="+", metavar="KIND")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--one", choices=FORMATS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(answers(options.one)))
        return 0

    from tinyllm.kernels import processor

    here = processor.possible(processor.instructions_of(*processor.target()))
    kinds = [kind.name for kind in here]
    if processor.target()[0].startswith("x86_64"):
        kinds += OLD
    kinds += ARM if options.arm else []
    kinds = [kind for kind in kinds if options.kinds is None or kind in options.kinds]
    differing = 0
    for dtype in options.formats:
        first: dict[str, Any] = {}
        for kind in kinds:
            begin = time.monotonic()
            found = elsewhere(kind, dtype, options.arm)
            seconds = time.monotonic() - begin
            assert found.pop("kind") == kind.partition(",")[0]
            first = first or found
            same = found == first
            differing += not same
            hashes = " ".join(found[n][what] for n in found for what in ("logits", "logprobs"))
            word = "same" if same else "DIFFERS"
            print(f"{dtype:5} {kind:17} {seconds:5.0f} s  {hashes}  {word}", flush=True)
            if not same or first is found:
                for name in found:
                    print(f"      {name}: {found[name]['text']!r}", flush=True)
    print(f"{differing} differ" if differing else "the same bits everywhere")
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
