"""Answers kept: of plain questions, how many get the same greedy answer as from float32.

The Kullback-Leibler divergence of a token says how far a format is from float32 on the average;
this says what a person sees of it. One token that falls otherwise changes all that follow, so 40
tokens have to be right for an answer to be kept.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tinyllm.engine.engine import Engine
from tinyllm.engine.types import Event, Prompt, Request, Token
from tinyllm.errors import TinyllmError
from tinyllm.runner import Runner
from tinyllm.sampler import SamplingParams
from tinyllm.tokenizer import Tokenizer

N_TOKENS = 40  # of an answer
NEAR = 1e-4  # of log-probability: likeliest tokens that are as close may change places
START_SECONDS = 60.0  # for a peer to be ready


@dataclass
class Answer:
    """A greedy answer, its end-of-turn token included, and what could have stood in each place."""

    tokens: list[int] = field(default_factory=list)
    best: list[list[tuple[int, float]]] = field(default_factory=list)  # token, log-probability


@dataclass(frozen=True)
class Kept:
    """How many answers are float32's."""

    same: int  # token by token
    near: int  # others, which part where float32 itself had two likeliest tokens within 1e-4
    questions: int


def questions() -> list[str]:
    """A hundred plain ones, a line each in `questions.txt`."""
    return Path(__file__).with_name("questions.txt").read_text(encoding="utf-8").splitlines()


def prompts(tokenizer: Tokenizer, asked: Sequence[str]) -> list[list[int]]:
    """Each question as a conversation of its own, without a system prompt."""
    return [tokenizer.apply_chat_template([{"role": "user", "content": q}]) for q in asked]


def answers(
    runner: Runner, asked: Sequence[Sequence[int]], stop_ids: Sequence[int]
) -> list[Answer]:
    """The model's greedy answers to prompts of token ids."""
    found = [Answer() for _ in asked]
    engine = Engine(runner, max_queue=len(asked))
    for i, ids in enumerate(asked):

        def listen(event: Event, answer: Answer = found[i]) -> None:
            if isinstance(event, Token):
                answer.tokens.append(event.token)
                answer.best.append(event.top)

        prompt = Prompt(np.array(ids, np.int32))
        greedy = SamplingParams(temperature=0.0)
        request = Request(
            str(i), prompt, greedy, N_TOKENS, stop_ids=frozenset(stop_ids), top_logprobs=8
        )
        engine.submit(request, listen)
    while engine.step():
        pass
    engine.stop()
    return found


def compare(true: Sequence[Answer], other: Sequence[Sequence[int]]) -> Kept:
    """Hold a format's answers, token ids, against float32's."""
    same = near = 0
    for answer, tokens in zip(true, other, strict=True):
        if answer.tokens == list(tokens):
            same += 1
        elif _parts_at_a_tie(answer, tokens):
            near += 1
    return Kept(same, near, len(true))


def _parts_at_a_tie(answer: Answer, tokens: Sequence[int]) -> bool:
    """Whether the first token that differs was as likely to float32, or nearly."""
    for best, was, now in zip(answer.best, answer.tokens, tokens, strict=False):
        if was != now:
            odds = dict(best)
            return now in odds and odds[was] - odds[now] < NEAR
    return False


# --- a peer -------------------------------------------------------------------------------------


def peer_answers(
    server: Path,
    model: Path,
    asked: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    threads: int,
) -> list[list[int]]:
    """llama.cpp's greedy answers to the same ids, over its server's `/completion`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(server), "-m", str(model), "-t", str(threads), "--host", "127.0.0.1",
               "--port", str(port), "-c", "2048", "-np", "1", "--no-webui"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(lambda: _get(f"http://127.0.0.1:{port}/health"), process, server)
        return [_peer_answer(port, ids, stop_ids) for ids in asked]
    finally:
        process.terminate()
        process.wait()


def _peer_answer(port: int, ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    body = {"prompt": list(ids), "n_predict": N_TOKENS, "temperature": 0, "cache_prompt": False,
            "return_tokens": True, "repeat_penalty": 1.0}  # fmt: skip
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/completion",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        answer = json.load(response)
    tokens: list[int] = answer["tokens"]
    if answer.get("stop_type") == "eos" and (not tokens or tokens[-1] not in stop_ids):
        tokens.append(stop_ids[0])  # some versions leave it out
    return tokens


def _get(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes], server: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise TinyllmError(f"{server} didn't come up; try it by hand with the same model")
        time.sleep(0.1)
