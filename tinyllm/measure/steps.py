"""What watching costs: `python -m tinyllm.measure.steps`.

Times `generate` and `decode_steps` in pairs, turn by turn, and the replay of steps all along a
generation. On a shared machine single figures swing; the medians of the pairs' ratios don't.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from tinyllm.lm import LM, load

PROMPT = [{"role": "user", "content": "Write a long story about a lighthouse."}]


def overhead(lm: LM, n_tokens: int, rounds: int) -> dict[str, float]:
    """Median seconds a token of both, and the median of decode_steps / generate by pair."""
    sampling: dict[str, Any] = {
        "temperature": 0.0,
        "logit_bias": dict.fromkeys(lm.tokenizer.eos_ids, -100.0),
    }

    def generated() -> None:
        lm.generate(PROMPT, max_tokens=n_tokens, **sampling)

    def stepped() -> None:
        for step in lm.decode_steps(PROMPT, max_tokens=n_tokens, **sampling):
            _ = step.token, step.text_delta

    seconds: dict[str, list[float]] = {"generate": [], "decode_steps": []}
    for i in range(rounds):
        pair = [("generate", generated), ("decode_steps", stepped)]
        for name, run in pair if i % 2 else reversed(pair):
            start = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - start) / n_tokens)
    ratios = [b / a for a, b in zip(seconds["generate"], seconds["decode_steps"], strict=True)]
    return {name: statistics.median(v) for name, v in seconds.items()} | {
        "ratio": statistics.median(ratios)
    }


def replay_times(lm: LM, n_tokens: int, every: int) -> list[float]:
    """Seconds that replaying each `every`-th step of a generation takes."""
    bias = dict.fromkeys(lm.tokenizer.eos_ids, -100.0)
    session = lm.session(PROMPT, temperature=0, logit_bias=bias)
    for _ in range(n_tokens):
        session.step()
    seconds = []
    for step in session.steps[::every]:
        start = time.perf_counter()
        _ = step.replay
        seconds.append(time.perf_counter() - start)
    return seconds


def main(n_tokens: int = 48, rounds: int = 7) -> None:
    """Print both, on the readable path and on the compiled one in 8 bits."""
    for dtype in ("f32", "q8"):
        lm = load(dtype=dtype)
        lm.generate(PROMPT, max_tokens=4)
        cost = overhead(lm, n_tokens, rounds)
        print(
            f"{dtype}: generate {cost['generate'] * 1e3:.2f} ms a token, decode_steps "
            f"{cost['decode_steps'] * 1e3:.2f}; the pairs' median ratio is {cost['ratio']:.4f}"
        )
        replays = sorted(replay_times(lm, 200, 10))
        print(
            f"{dtype}: replay of a step of 200: median {statistics.median(replays) * 1e3:.0f} ms, "
            f"fastest {replays[0] * 1e3:.0f}, slowest {replays[-1] * 1e3:.0f}"
        )


if __name__ == "__main__":
    main()
