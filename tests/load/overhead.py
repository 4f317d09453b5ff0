"""What the server costs on top of the engine: one client, beside the engine called directly.

    python -m tests.load.overhead --pairs 7

Both generate the same greedy answer to the same prompt, in turns: once over HTTP, from a server in
a process of its own, once through `Engine.submit` in this one. The figure is the median of the
pairs' ratios; the first of each is thrown away.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np

from tests.load import servers
from tests.load.client import stream_chat_alone
from tinyllm.engine.engine import Engine
from tinyllm.engine.types import Prompt, Request
from tinyllm.lm import load
from tinyllm.sampler import SamplingParams


def main(argv: Sequence[str] | None = None) -> float:
    """Print both speeds and the overhead; returns the overhead as a share of the engine's time."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.overhead", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--dtype", default="q8")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)

    lm = load("smollm2-135m-instruct", dtype=args.dtype, backend="compiled", threads=args.threads)
    engine = Engine(lm.runner)
    engine.start()
    messages = [{"role": "user", "content": "Tell a long story about a lighthouse."}]
    ids = np.array(lm.tokenizer.apply_chat_template(messages), np.int32)
    body = {
        "model": "smollm2-135m-instruct", "messages": messages, "max_tokens": args.tokens,
        "temperature": 0, "logit_bias": {str(i): -100 for i in lm.tokenizer.eos_ids},
    }  # fmt: skip
    params = SamplingParams(temperature=0, logit_bias=dict.fromkeys(lm.tokenizer.eos_ids, -100.0))

    def direct() -> float:
        start = time.perf_counter()
        outcome = engine.run(Request("direct", Prompt(ids), params, args.tokens))
        assert len(outcome.answers[0].tokens) == args.tokens
        return time.perf_counter() - start

    def served(port: int) -> float:
        start = time.perf_counter()
        call = stream_chat_alone(port, body)
        assert call.completion_tokens == args.tokens, call.error
        return time.perf_counter() - start

    options = ("--dtype", args.dtype, "--threads", str(args.threads))
    with servers.tinyllm(*options) as server:
        pairs = [(direct(), served(server.port)) for _ in range(args.pairs + 1)][1:]
    engine.stop()
    overhead = statistics.median(b / a for a, b in pairs) - 1
    middle_direct, middle_served = (statistics.median(x) for x in zip(*pairs, strict=True))
    print(
        f"engine {args.tokens / middle_direct:.1f} tokens/s, server "
        f"{args.tokens / middle_served:.1f} tokens/s, overhead {100 * overhead:+.1f} % "
        f"(median of {args.pairs} pairs of {args.tokens} tokens)"
    )
    return overhead


if __name__ == "__main__":
    main()
