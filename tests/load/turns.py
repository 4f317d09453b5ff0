"""How much sooner a conversation's second turn is answered than a cold start of the same length.

    python -m tests.load.turns --prompt-tokens 1000 --pairs 7

In turns: a prompt that nobody has sent before, then the same conversation one question further.
The figure is the median of the pairs' ratios of time to first token.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Sequence

from tests.load import servers
from tests.load.client import stream_chat
from tests.load.stall import long_prompt


async def pair(port: int, n_tokens: int, seed: int) -> tuple[float, float, int]:
    """Seconds to the first token, cold and on the second turn, and how much was cached."""
    messages = [{"role": "user", "content": long_prompt(n_tokens, seed)}]
    body = {"model": "smollm2-135m-instruct", "max_tokens": 8, "temperature": 0,
            "logit_bias": {"2": -100}, "messages": messages}  # fmt: skip
    cold = await stream_chat(port, body)
    messages += [
        {"role": "assistant", "content": cold.text},
        {"role": "user", "content": "Go on, please."},
    ]
    warm = await stream_chat(port, body)
    return cold.first, warm.first, warm.cached_tokens


def main(argv: Sequence[str] | None = None) -> float:
    """Print the medians; returns the ratio."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.turns", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--prompt-tokens", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--server", default="", help="options of the server that is started")
    args = parser.parse_args(argv)
    with servers.tinyllm(*args.server.split()) as server:
        pairs = [
            asyncio.run(pair(server.port, args.prompt_tokens, seed))
            for seed in range(args.pairs + 1)
        ][1:]
    ratio = statistics.median(cold / warm for cold, warm, _ in pairs)
    cold, warm, cached = (statistics.median(x) for x in zip(*pairs, strict=True))
    print(
        f"first token after {1e3 * cold:.0f} ms cold, {1e3 * warm:.0f} ms on the second turn "
        f"({cached:.0f} tokens cached): {ratio:.1f} times sooner (median of {args.pairs} pairs)"
    )
    return ratio


if __name__ == "__main__":
    main()
