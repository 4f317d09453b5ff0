"""The promise of section 5 of the contract: the same bits, whatever else the server is doing.

On the real weights and the compiled kernels, with exact equality of tokens, log-probabilities and
alternatives: alone and in batches of 2, 7 and 16 with random neighbours, from a cold and a warm
prefix cache, with any prefill chunk, with 1 or 2 threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tinyllm.compiled import CompiledModel
from tinyllm.config import ModelConfig
from tinyllm.decode import Session
from tinyllm.engine.engine import Engine
from tinyllm.engine.types import Done, Event, Prompt, Request, Started, Token
from tinyllm.sampler import SamplingParams
from tinyllm.tokenizer import Tokenizer

PARAMS = SamplingParams(temperature=0.9, top_p=0.95, seed=11, frequency_penalty=0.2)
N_TOKENS = 16


@pytest.fixture(scope="module")
def tokenizer(weights_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(weights_folder)


# One format a run; TINYLLM_TEST_DTYPES=f32,bf16,q8,q4 tries them all.
DTYPES = os.environ.get("TINYLLM_TEST_DTYPES", "q8").split(",")


@pytest.fixture(scope="module", params=DTYPES)
def models(weights_folder: Path, request: pytest.FixtureRequest) -> dict[int, CompiledModel]:
    """The same weights with one thread and with two."""
    config = ModelConfig.from_folder(weights_folder)
    return {
        threads: CompiledModel(config, weights_folder, request.param, threads, kv_cache_mb=200)
        for threads in (1, 2)
    }


@pytest.fixture(scope="module")
def prompt(tokenizer: Tokenizer) -> Prompt:
    """A conversation of about 150 tokens: more than two pages of the cache."""
    text = "Numbers like 3.14159 and words like Überraschung. " * 7
    ids = tokenizer.apply_chat_template([{"role": "user", "content": text}])
    assert 130 < len(ids) < 250
    return Prompt(np.array(ids, np.int32))


class Heard:
    """Everything that a request was told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.done = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Done):
            self.done.set()

    @property
    def bits(self) -> list[list[Token]]:
        """Token events, choice by choice: equal only if every bit is."""
        assert self.done.wait(60)
        tokens = [e for e in self.events if isinstance(e, Token)]
        return [[t for t in tokens if t.index == i] for i in range(2)]

    @property
    def cached_tokens(self) -> int:
        return next(e.cached_tokens for e in self.events if isinstance(e, Started))


def ask(engine: Engine, prompt: Prompt, name: str = "it") -> Heard:
    """The request in question: two choices, with the five best alternatives of each token."""
    heard = Heard()
    engine.submit(Request(name, prompt, PARAMS, N_TOKENS, n=2, top_logprobs=5, keep=True), heard)
    return heard


@pytest.fixture(scope="module")
def alone(models: dict[int, CompiledModel], prompt: Prompt) -> list[list[Token]]:
    """The answer of an engine that has nothing else to do."""
    engine = Engine(models[2], prefix_cache=False)
    engine.start()
    bits = ask(engine, prompt).bits
    engine.stop()
    assert [len(choice) for choice in bits] == [N_TOKENS, N_TOKENS]
    assert [t.token for t in bits[0]] != [t.token for t in bits[1]]
    return bits


@pytest.fixture
def neighbours() -> Iterator[np.random.Generator]:
    yield np.random.default_rng()  # new ones every time


def crowd(engine: Engine, rng: np.random.Generator, count: int) -> list[Heard]:
    """Random requests: any tokens, any length, any way to sample."""
    crowd = []
    for i in range(count):
        length = int(rng.choice([1, 5, 30, 100, 300]))
        tokens = rng.integers(0, engine.runner.config.vocab_size, length).astype(np.int32)
        params = SamplingParams(temperature=float(rng.choice([0.0, 1.0, 1.5])), seed=i)
        crowd.append(Heard())
        engine.submit(Request(f"n{i}", Prompt(tokens), params, int(rng.integers(1, 40))), crowd[-1])
    return crowd


@pytest.mark.parametrize("size", [2, 7, 16])
def test_in_a_batch(
    models: dict[int, CompiledModel],
    prompt: Prompt,
    alone: list[list[Token]],
    neighbours: np.random.Generator,
    size: int,
) -> None:
    engine = Engine(models[2], max_batch=size + 1)  # n = 2 takes two rows
    engine.start()
    before = crowd(engine, neighbours, (size - 1) // 2)
    heard = ask(engine, prompt)
    after = crowd(engine, neighbours, size - 1 - len(before))
    assert heard.bits == alone
    for other in before + after:
        assert other.done.wait(60)
    engine.stop()


def behind_a_shared_prefix(
    model: CompiledModel, prompt: Prompt, shared: int, others: list[int]
) -> Heard:
    """What is heard behind another prompt with the same first `shared` tokens, then `others`."""
    engine = Engine(model)
    engine.start()
    other = np.concatenate([prompt.tokens[:shared], np.array(others, np.int32)])
    engine.run(Request("other", Prompt(other), SamplingParams(seed=1), 9), 60)
    heard = ask(engine, prompt)
    assert heard.done.wait(60)
    engine.stop()
    return heard


def test_from_a_warm_prefix(
    models: dict[int, CompiledModel], prompt: Prompt, alone: list[list[Token]]
) -> None:
    engine = Engine(models[2])
    engine.start()
    assert ask(engine, prompt).bits == alone
    again = ask(engine, prompt)
    assert again.bits == alone and again.cached_tokens == len(prompt.tokens) - 1
    engine.stop()
    for shared in (1, 63, 64, 100):  # only so much of it is known, from a prompt that goes on
        heard = behind_a_shared_prefix(models[2], prompt, shared, [17, 4711])
        assert heard.bits == alone and heard.cached_tokens == shared


@pytest.mark.long
@pytest.mark.parametrize("chunk", [1, 23, 64])
def test_with_any_prefill_chunk(
    models: dict[int, CompiledModel],
    prompt: Prompt,
    alone: list[list[Token]],
    neighbours: np.random.Generator,
    chunk: int,
) -> None:
    engine = Engine(models[2], prefill_chunk=chunk, prefix_cache=False)
    engine.start()
    crowd(engine, neighbours, 1)
    assert ask(engine, prompt).bits == alone
    engine.stop()


def test_with_one_thread(
    models: dict[int, CompiledModel],
    prompt: Prompt,
    alone: list[list[Token]],
    neighbours: np.random.Generator,
) -> None:
    engine = Engine(models[1], prefill_chunk=50)
    engine.start()
    crowd(engine, neighbours, 4)
    assert ask(engine, prompt).bits == alone
    engine.stop()


def test_replay_proves_it(
    models: dict[int, CompiledModel], prompt: Prompt, neighbours: np.random.Generator
) -> None:
    engine = Engine(models[2])
    engine.start()
    ask(engine, prompt, "first").bits  # noqa: B018
    ask(engine, prompt, "warm").bits  # noqa: B018
    for name in ("first", "warm"):
        crowd(engine, neighbours, 3)
        result = engine.replay(name, "", 60)
        assert result.identical and result.tokens_compared == 2 * N_TOKENS
    engine.stop()


@pytest.mark.long
def test_the_notebooks_session_draws_the_same_tokens(
    models: dict[int, CompiledModel],
    tokenizer: Tokenizer,
    prompt: Prompt,
    alone: list[list[Token]],
) -> None:
    session = Session(models[2], tokenizer, prompt.tokens.tolist(), PARAMS)
    steps = [session.step() for _ in range(N_TOKENS)]
    assert [s.token for s in steps] == [t.token for t in alone[0]]
    gaps = [abs(s.logprob - t.logprob) for s, t in zip(steps, alone[0], strict=True)]
    assert max(gaps) < 1e-5
