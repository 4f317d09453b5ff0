"""Thirty students: each streams an answer of 100 tokens with its trace, then looks at 20 tokens.

    python -m tests.load.students --port 8000 --students 30

Half of them stream while the other half look; then they change places. What counts is how long a
look takes (p95 at most 2 s), and what the looks cost the streams between tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.load.__main__ import percentiles

ANSWER, LOOKS = 100, 20  # tokens a student
WANTS: list[dict[str, Any]] = [
    {"candidates": 12, "logits": True},
    {"attention": {"layer": 12}},
    {"candidates": 1, "lens": 5},
    {"explain": {"name": "p_raw"}},
]


@dataclass
class Student:
    """One page's traffic and what it waited for, in seconds."""

    number: int
    ids: list[int] = field(default_factory=list)
    n_prompt: int = 0
    gaps: list[float] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    async def stream(self, http: httpx.AsyncClient, model: str) -> None:
        """An answer of ANSWER tokens, as the page asks for it."""
        question = (
            f"Student {self.number} asks: tell me a long story about the number {self.number}."
        )
        told = await http.post("/v1/tokenize", json={
            "model": model, "messages": [{"role": "user", "content": question}]})  # fmt: skip
        self.ids = told.json()["tokens"]
        self.n_prompt = len(self.ids)
        body = {
            "model": model, "prompt": self.ids, "max_tokens": ANSWER, "ignore_eos": True,
            "seed": self.number, "stream": True, "trace": {"candidates": 12, "stages": True},
        }  # fmt: skip
        before = None
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                self.failed.append(f"stream: {answer.status_code}")
                return
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                steps = json.loads(line[6:])["choices"]
                if not steps or "trace" not in steps[0]:
                    continue
                now = time.perf_counter()
                if before is not None:
                    self.gaps.append(now - before)
                before = now
                self.ids += [step["token"] for step in steps[0]["trace"]["steps"]]

    async def look(self, http: httpx.AsyncClient, model: str) -> None:
        """LOOKS looks at tokens of the answer, one after the other."""
        for i in range(LOOKS):
            position = self.n_prompt + i * (len(self.ids) - self.n_prompt) // LOOKS
            body = {
                "model": model, "tokens": self.ids[: position + 41], "position": position,
                "n_prompt": self.n_prompt, "want": WANTS[i % len(WANTS)],
            }  # fmt: skip
            start = time.perf_counter()
            answer = await http.post("/v1/look", json=body)
            self.looks.append(time.perf_counter() - start)
            if answer.status_code != 200:
                self.failed.append(f"look: {answer.status_code}")


async def lesson(address: str, n: int) -> None:
    """The lesson, and what it measured."""
    limits = httpx.Limits(max_connections=2 * n)
    async with httpx.AsyncClient(base_url=address, timeout=300, limits=limits) as http:
        model = (await http.get("/health")).json()["models"][0]
        students = [Student(i) for i in range(n)]
        first, second = students[: n // 2], students[n // 2 :]
        for student in (Student(n), Student(n + 1)):  # not counted: loads the readable model
            await student.stream(http, model)
            await student.look(http, model)
        await asyncio.gather(*(one.stream(http, model) for one in first))
        alone = percentiles([gap for one in first for gap in one.gaps])
        await asyncio.gather(
            *(one.look(http, model) for one in first),
            *(one.stream(http, model) for one in second),
        )
        beside = percentiles([gap for one in second for gap in one.gaps])
        await asyncio.gather(
            *(one.look(http, model) for one in second),
            *(one.stream(http, model) for one in first),
        )
    waits = [percentiles([wait for one in half for wait in one.looks]) for half in (first, second)]
    for name, (p50, p95, p99) in [
        ("between tokens, streams alone", alone), ("between tokens, beside looks", beside),
        ("a look, first half", waits[0]), ("a look, second half", waits[1]),
    ]:  # fmt: skip
        print(f"{name:32} p50 {p50:6.3f} s   p95 {p95:6.3f} s   p99 {p99:6.3f} s")
    for half in (first, second):  # the first looks into a conversation compute its text
        turns = zip(*(one.looks for one in half), strict=True)
        medians = [percentiles(waits)[0] for waits in turns]
        print("a look's median, turn by turn:", *(f"{median:.1f}" for median in medians))
    faults = [fault for one in students for fault in one.failed]
    print(f"{len(faults)} failed of {n * (LOOKS + 1)}: {sorted(set(faults))}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--students", type=int, default=30)
    asked = parser.parse_args()
    asyncio.run(lesson(f"http://127.0.0.1:{asked.port}", asked.students))
