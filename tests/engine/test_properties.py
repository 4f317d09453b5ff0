"""Random lives of many requests: whatever happens, in whatever order, nothing leaks or mixes."""

from __future__ import annotations

import time
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.fake_runner import VOCAB, FakeRunner, fake_logits
from tinyllm.config import ModelConfig
from tinyllm.engine.engine import Engine
from tinyllm.engine.job import Ticket
from tinyllm.engine.scheduler import RESERVED_ROWS
from tinyllm.engine.types import (
    Done,
    Event,
    Finished,
    Prompt,
    PromptTooLong,
    QueueFull,
    Request,
    Started,
    Token,
)
from tinyllm.model import Model
from tinyllm.sampler import Sampler, SamplingParams

# Few distinct prompts that share beginnings, so that prefixes are found and pages shared.
PROMPTS = [
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    [1, 2, 3, 4, 5, 6, 7, 8, 30],
    [1, 2, 3, 4, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53],
    [20],
    [20, 21, 22, 23],
    [20, 21, 22, 23, 24],
]


class Record:
    """One request and all that was heard of it."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.events: list[Event] = []
        self.ticket: Ticket | None = None
        self.cancelled = False

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def done(self) -> bool:
        return any(isinstance(e, Done) for e in self.events)

    def check(self) -> None:
        """The grammar of a request's events, and the tokens against the plain loop."""
        assert sum(isinstance(e, Done) for e in self.events) == 1
        assert isinstance(self.events[-1], Done)
        for index in range(self.request.n):
            mine = [e for e in self.events if isinstance(e, (Token, Finished)) and e.index == index]
            assert [type(e) for e in mine] == [Token] * (len(mine) - 1) + [Finished]
            reason = mine[-1].reason  # type: ignore[union-attr]
            tokens = [e.token for e in mine if isinstance(e, Token)]
            assert reason in ("length", "crowded out") or (reason == "cancelled" and self.cancelled)
            if reason == "length":
                assert len(tokens) == self.request.max_tokens
            ids = list(self.request.prompt.tokens)
            sampler = Sampler(self.request.params, index)
            for token in tokens:
                assert sampler.pick(fake_logits(np.array(ids, np.int64))).token == token
                ids.append(token)
        if any(isinstance(e, Token) for e in self.events):
            assert isinstance(self.events[0], Started)
            assert 0 <= self.events[0].cached_tokens < len(self.request.prompt.tokens)


class Serving(RuleBasedStateMachine):
    @initialize(
        n_pages=st.integers(12, 60),
        page_size=st.integers(1, 6),
        max_batch=st.integers(1, 6),
        max_queue=st.integers(0, 6),
        chunk=st.integers(1, 20),
        prefix_cache=st.booleans(),
    )
    def build(self, n_pages: int, page_size: int, **options: Any) -> None:
        chunk = options.pop("chunk")
        self.runner = FakeRunner(n_pages, page_size, max_seq_len=64)
        self.engine = Engine(self.runner, prefill_chunk=chunk, **options)
        self.max_queue = options["max_queue"]
        self.max_batch = options["max_batch"]
        self.records: list[Record] = []
        self.refused = 0

    @rule(
        prompt=st.sampled_from(PROMPTS),
        max_tokens=st.integers(0, 12),
        n=st.integers(1, 3),
        key=st.sampled_from("ab"),
        seed=st.integers(0, 3),
    )
    def arrive(self, prompt: list[int], max_tokens: int, n: int, key: str, seed: int) -> None:
        request = Request(
            f"r{len(self.records)}",
            Prompt(np.array(prompt, np.int32)),
            SamplingParams(seed=seed),
            max_tokens,
            n=min(n, self.max_batch),
            key=key,
        )
        record = Record(request)
        try:
            record.ticket = self.engine.submit(request, record)
        except (QueueFull, PromptTooLong):
            self.refused += 1
            return
        job = record.ticket._job
        if job.max_tokens < max_tokens:  # clamped to a small budget: compare with what was granted
            record.request = Request(
                request.id, request.prompt, request.params, job.max_tokens, request.n
            )
        self.records.append(record)

    @rule(steps=st.integers(1, 8))
    def work(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.step()

    @precondition(lambda self: any(not r.done for r in self.records))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        record = data.draw(st.sampled_from([r for r in self.records if not r.done]))
        assert record.ticket is not None
        record.cancelled = True
        record.ticket.cancel()
        self.engine.step()
        assert record.done  # within one step

    @rule()
    def start_like_an_earlier_one(self) -> None:
        """A second turn: an answer, and more behind it."""
        finished = [r for r in self.records if r.done and len(r.events) > 3]
        if finished:
            record = finished[-1]
            tokens = [e.token for e in record.events if isinstance(e, Token) and e.index == 0]
            prompt = [*map(int, record.request.prompt.tokens), *tokens, 5][:50]
            self.arrive(prompt, 4, 1, record.request.key, 0)

    @invariant()
    def pages_add_up(self) -> None:
        pool = self.runner.pool
        assert (pool.refs >= 0).all()
        stats = self.engine.stats()
        assert stats.running_choices <= self.max_batch + self.max_batch // RESERVED_ROWS
        assert stats.queue_length <= self.max_queue + self.max_batch
        promised = sum(job.pages for job in self.engine._scheduler.running)
        assert promised <= pool.n_pages

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(10_000):
            if not self.engine.step() and not self.engine.stats().queue_length:
                break
        stats = self.engine.stats()
        assert (stats.queue_length, stats.running, stats.running_choices) == (0, 0, 0)
        for record in self.records:
            record.check()
        self.engine.stop()
        assert self.runner.pool.free_pages == self.runner.pool.n_pages
        assert (self.runner.pool.refs == 0).all()


TestServing = Serving.TestCase
TestServing.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@settings(max_examples=40, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 20), st.integers(1, 8)),
        min_size=1,
        max_size=25,
    ),
    max_batch=st.integers(1, 4),
)
def test_within_a_key_it_is_first_come_first_served(
    arrivals: list[tuple[str, int, int]], max_batch: int
) -> None:
    engine = Engine(FakeRunner(), max_batch=max_batch, max_queue=100)
    admitted: list[tuple[str, int]] = []
    admit = engine._scheduler.admit

    def spy() -> Any:
        for job in admit():
            admitted.append((job.request.key, job.order))
            yield job

    engine._scheduler.admit = spy  # type: ignore[method-assign]
    for i, (key, n_prompt, max_tokens) in enumerate(arrivals):
        prompt = Prompt(np.arange(n_prompt, dtype=np.int32) % VOCAB)
        engine.submit(
            Request(str(i), prompt, SamplingParams(seed=1), max_tokens, key=key), lambda e: None
        )
    while engine.step():
        pass
    assert len(admitted) == len(arrivals)
    for key in "abc":
        orders = [order for k, order in admitted if k == key]
        assert orders == sorted(orders)
    # Of the first of every key, none waits behind more than one of each other key (and the rows).
    keys = list(dict.fromkeys(key for key, *_ in arrivals))
    first = [k for k, _ in admitted[: len(keys)]]
    assert set(first) == set(keys)


def test_sixty_four_at_once_from_many_threads() -> None:
    import threading

    engine = Engine(FakeRunner(n_pages=400), max_batch=16, max_queue=64)
    engine.start()
    records = [
        Record(Request(str(i), Prompt(np.array(PROMPTS[i % 6], np.int32)),
                       SamplingParams(seed=i), 10, key=str(i % 3)))
        for i in range(64)
    ]  # fmt: skip

    def client(record: Record) -> None:
        record.ticket = engine.submit(record.request, record)

    threads = [threading.Thread(target=client, args=(r,)) for r in records]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deadline = time.monotonic() + 20
    while not all(r.done for r in records) and time.monotonic() < deadline:
        time.sleep(0.01)
    for record in records:
        record.check()
    engine.stop()
    assert engine.runner.pool.free_pages == 400  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def tiny_model() -> Model:
    config = ModelConfig(
        dim=32, hidden_dim=48, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8,
        vocab_size=VOCAB, max_seq_len=128, rope_theta=1e4, norm_eps=1e-5,
        tie_embeddings=True, bos_id=None, eos_ids=(0,),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    weights = {
        "model.embed_tokens.weight": (VOCAB, 32), "model.norm.weight": (32,),
    }  # fmt: skip
    for i in range(2):
        block = f"model.layers.{i}"
        weights |= {
            f"{block}.input_layernorm.weight": (32,),
            f"{block}.post_attention_layernorm.weight": (32,),
            f"{block}.self_attn.q_proj.weight": (32, 32),
            f"{block}.self_attn.k_proj.weight": (16, 32),
            f"{block}.self_attn.v_proj.weight": (16, 32),
            f"{block}.self_attn.o_proj.weight": (32, 32),
            f"{block}.mlp.gate_proj.weight": (48, 32),
            f"{block}.mlp.up_proj.weight": (48, 32),
            f"{block}.mlp.down_proj.weight": (32, 48),
        }
    return Model(config, {k: rng.normal(0, 0.3, s).astype(np.float32) for k, s in weights.items()})


@pytest.mark.parametrize("chunk", [5, 256])
def test_the_readable_model_serves_from_contiguous_caches(tiny_model: Model, chunk: int) -> None:
    engine = Engine(tiny_model, kv_cache_mb=1, max_batch=4, prefill_chunk=chunk)
    engine._caches.memory.n_pages = 200  # type: ignore[misc]  # a budget that two requests fill
    engine._scheduler.n_pages = 200
    records = []
    for i in range(12):
        prompt = np.array(PROMPTS[i % 6], np.int32)
        request = Request(str(i), Prompt(prompt), SamplingParams(temperature=0), 40, n=1 + i % 2)
        records.append(Record(request))
        engine.submit(request, records[-1])
    while engine.step():
        pass
    for record in records:
        cache = tiny_model.new_cache(128)
        logits = tiny_model.prefill(record.request.prompt.tokens, cache)
        tokens = [int(logits[-1].argmax())]
        while len(tokens) < 40:
            logits = tiny_model.forward(tokens[-1:], cache)
            tokens.append(int(logits[-1].argmax()))
        for i in range(record.request.n):
            got = [e.token for e in record.events if isinstance(e, Token) and e.index == i]
            assert got == tokens
        assert record.done
    assert any(isinstance(e, Started) and e.cached_tokens for r in records for e in r.events)
    engine.stop()
    assert engine._caches.memory.free_pages == 200
