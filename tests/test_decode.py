"""The debugger: whatever is stepped, forced, rewound and forked, the numbers are a fresh run's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.tiny import CONFIG, bytes_tokenizer, tiny_model
from tinyllm import decode
from tinyllm.decode import Session, decode_steps, generate
from tinyllm.errors import CacheFull, TraceError
from tinyllm.kv_cache import KVCache
from tinyllm.model import Model
from tinyllm.runner import Segment
from tinyllm.sampler import SamplingParams

MODEL = tiny_model()
TOKENIZER = bytes_tokenizer()
PROMPT = list(b"What is the capital of France?")


def new_session(model: Model = MODEL, prompt: list[int] = PROMPT, **sampling: object) -> Session:
    return Session(model, TOKENIZER, prompt, SamplingParams(**{"seed": 7, **sampling}))  # type: ignore[arg-type]


class CompiledLike:
    """A runner that is not the readable model, over the same numbers."""

    batch_invariant = False

    def __init__(self, model: Model) -> None:
        self.config, self.dtype, self.fingerprint = model.config, "f32", "compiled-like"
        self._model = model

    def new_cache(self, capacity: int) -> KVCache:
        return self._model.new_cache(capacity)

    def forward_batch(self, segments: list[Segment]) -> list[np.ndarray]:
        return self._model.forward_batch(segments)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
        {"temperature": 1.3, "presence_penalty": 0.7, "frequency_penalty": 0.4},
        {"temperature": 1.0, "logit_bias": {65: 3.0, 66: -100.0}},
    ],
)
def test_generate_is_the_fold_of_the_steps(sampling: dict[str, object]) -> None:
    done = generate(new_session(**sampling), 40)
    steps = list(decode_steps(new_session(**sampling), 40))
    kept = steps if done.finish_reason == "length" else steps[:-1]
    assert [s.token for s in kept] == done.tokens
    assert [s.logprob for s in kept] == done.logprobs  # the same bits


def test_looking_changes_nothing() -> None:
    plain = [s.token for s in decode_steps(new_session(temperature=0.9), 12)]
    looked = []
    for step in decode_steps(new_session(temperature=0.9), 12):
        looked.append(step.token)
        step.candidates(5), step.stages, step.entropy, step.attention(1, 2), step.logit_lens(2)
        step.activations("*"), step.timing(), step.to_dict(), step.cache.k(0), repr(step)
    assert looked == plain


def test_the_cached_run_equals_the_uncached_one() -> None:
    session = new_session(temperature=0.0)
    for _ in range(10):
        step = session.step()
        uncached = MODEL.forward(step.tokens_before, MODEL.new_cache(100), logits="last")[-1]
        np.testing.assert_allclose(step.logits, uncached, atol=1e-5)


def test_a_candidate_says_which_filter_cut_it() -> None:
    step = new_session(temperature=0.7, top_k=20, top_p=0.5, logit_bias={3: -50.0}).step()
    candidates = step.candidates(257)
    assert [c.rank for c in candidates] == list(range(257))
    logits = [c.logit for c in candidates]
    assert logits == sorted(logits, reverse=True)
    assert {c.cut_by for c in candidates} == {None, "top_k", "top_p"}
    assert sum(c.cut_by != "top_k" for c in candidates) == 20
    assert sum(c.p for c in candidates) == pytest.approx(1)
    assert all((c.p == 0) == (not c.kept) for c in candidates)
    assert next(c for c in candidates if c.token == step.token).kept
    names = [s.name for s in step.stages]
    assert names == ["raw", "mask", "penalties", "temperature", "top_k", "top_p"]
    kept = [s.n_kept for s in step.stages]
    assert kept == sorted(kept, reverse=True)
    assert kept[4] == 20
    assert kept[5] == sum(c.kept for c in candidates)
    assert step.stages[0].mass == pytest.approx(1)
    assert step.stages[5].mass == pytest.approx(sum(c.p_raw for c in candidates if c.kept))


def test_a_past_steps_stages_know_the_penalties_of_its_time() -> None:
    """They count what came before the step, not what the session has picked since."""
    session = new_session(temperature=0.5, frequency_penalty=1.5)
    seen = [(session.peek().stages[2].logits, session.step()) for _ in range(8)]
    for penalised, step in seen:
        np.testing.assert_array_equal(step.stages[2].logits, penalised)


def test_forcing_a_token() -> None:
    session = new_session(temperature=0.0)
    step = session.step(token="P")
    assert (step.token, step.chosen_by, step.text_delta) == (ord("P"), "forced", "P")
    assert step.candidates(3).chosen == ord("P")
    fresh = MODEL.forward([*PROMPT, ord("P")], MODEL.new_cache(50), logits="last")[-1]
    np.testing.assert_allclose(session.peek().logits, fresh, atol=1e-5)
    with pytest.raises(ValueError, match="is 5 tokens, not one"):
        session.step(token="Paris")
    with pytest.raises(ValueError, match="not in the vocabulary"):
        session.step(token=300)
    assert len(session.steps) == 1


def test_text_is_cut_at_whole_code_points() -> None:
    session = new_session()
    deltas = [session.step(token=byte).text_delta for byte in "é🙂".encode()]
    assert deltas == ["", "é", "", "", "", "🙂"]
    session.rewind(2)
    assert session.fork().step(token=0x99).text_delta == ""
    assert [session.step(token=b).text_delta for b in "🙂".encode()[2:]] == ["", "🙂"]


def test_rewind_and_step_give_the_bits_of_a_fresh_run() -> None:
    session = new_session(temperature=0.9, top_p=0.95)
    first = [session.step() for _ in range(12)]
    session.rewind(7)
    again = [session.step() for _ in range(7)]
    for a, b in zip(first[5:], again, strict=True):
        assert (a.token, a.logprob, a.position) == (b.token, b.logprob, b.position)
        np.testing.assert_array_equal(a.logits, b.logits)
    with pytest.raises(ValueError, match="can't rewind 13 of 12"):
        session.rewind(13)
    with pytest.raises(ValueError, match="can't rewind -1"):
        session.rewind(-1)


def test_forks_do_not_touch_each_other() -> None:
    session = new_session(temperature=0.0)
    for _ in range(4):
        session.step()
    twin = session.fork()
    session.step(token="x"), session.step(), session.rewind(5)
    assert len(twin.steps) == 4
    rest = [twin.step().token for _ in range(6)]
    fresh = new_session(temperature=0.0)
    assert [fresh.step().token for _ in range(10)][4:] == rest
    session.cache.free()  # the twin's past steps don't lean on the first session either
    assert twin.steps[2].replay_error < 1e-5


def test_a_session_keeps_the_logits_of_its_newest_steps_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decode, "KEPT_LOGITS", 4)
    session, full = new_session(temperature=1.0), []
    for _ in range(20):
        full.append(session.peek().logits)
        session.step()
    assert sum(bool(s.kept_logits) for s in session.steps) == 5  # four, and the first
    for step, logits in zip(session.steps, full, strict=True):
        np.testing.assert_array_equal(step.logits, logits)  # made again, to the bit
    tokens = session.tokens
    session.rewind(15)
    for _ in range(15):
        session.step()
    assert session.tokens == tokens


def test_a_step_that_was_rewound_can_still_be_looked_at() -> None:
    """Its history is computed again where the session has gone another way since."""
    session = new_session(temperature=0.9)
    steps = [session.step() for _ in range(8)]
    patterns = [s.attention(1, 0).copy() for s in steps]
    keys = [s.cache.k(1) for s in steps]
    session.rewind(6)
    for _ in range(6):
        session.step(token="z")
    for step, pattern, k in zip(steps, patterns, keys, strict=True):
        np.testing.assert_allclose(step.attention(1, 0), pattern, atol=1e-6)
        np.testing.assert_array_equal(step.cache.k(1), k)
        assert step.replay_error < 1e-5


def test_the_cache_view_is_read_only_and_clipped() -> None:
    session = new_session(temperature=0.0)
    steps = [session.step() for _ in range(3)]
    view = steps[1].cache
    assert view.n_tokens == len(PROMPT) + 1
    assert view.k(2).shape == view.v(2).shape == (len(PROMPT) + 1, 2, 4)
    assert view.nbytes == view.n_tokens * 2 * CONFIG.n_layers * 2 * 4 * 4
    with pytest.raises(ValueError, match="read-only"):
        view.k(0)[0] = 0
    with pytest.raises(ValueError, match="layer must be from 0 to 2"):
        view.v(3)


def test_a_replay_is_the_step() -> None:
    session = new_session(temperature=0.8)
    for step in [session.step() for _ in range(6)]:
        assert step.replay_error < 1e-5
        hidden, lens = step.hidden_states(), step.logit_lens(k=3)
        assert hidden.shape == (CONFIG.n_layers + 1, CONFIG.dim)
        np.testing.assert_allclose(lens.logits[-1], step.logits, atol=1e-5)
        assert [t for t, _, _ in lens[-1].top] == [c.token for c in step.candidates(3)]
        assert lens[-1].rank == step.choice.candidate(step.token).rank
        for layer in range(CONFIG.n_layers):
            for head in range(CONFIG.n_heads):
                row = step.attention(layer, head)
                assert row.shape == (step.position,)
                assert row.sum() == pytest.approx(1, abs=1e-6)
        assert step.activations("blocks.*.hook_resid_post")["resid_post", -1].shape == (1, 24)
        assert step.timing().total > 0
    with pytest.raises(ValueError, match="head must be from 0 to 5"):
        step.attention(0, 6)


def test_the_other_path_replays_on_the_readable_model() -> None:
    runner = CompiledLike(MODEL)
    session = Session(runner, TOKENIZER, PROMPT, SamplingParams(seed=1), readable=lambda: MODEL)
    steps = [session.step() for _ in range(4)]
    assert all(s.replay_error < 1e-5 for s in steps)
    blind = Session(runner, TOKENIZER, PROMPT, SamplingParams(seed=1))
    with pytest.raises(TraceError, match="compiled path alone"):
        _ = blind.step().replay


def test_an_image_prompt_is_a_prompt() -> None:
    rng = np.random.default_rng(3)
    where = np.array([2, 3, len(PROMPT) - 1])
    rows = rng.standard_normal((3, CONFIG.dim)).astype(np.float32)
    session = Session(
        MODEL, TOKENIZER, PROMPT, SamplingParams(temperature=0), image_positions=where,
        image_rows=rows,
    )  # fmt: skip
    fresh = MODEL.forward(
        PROMPT, MODEL.new_cache(50), logits="last", image_positions=where, image_rows=rows
    )[-1]
    np.testing.assert_allclose(session.peek().logits, fresh, atol=1e-5)
    steps = [session.step() for _ in range(4)]
    assert all(s.replay_error < 1e-5 for s in steps)  # the first one's newest "token" is an image
    assert session.fork().step().token == session.step().token


def test_edges() -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        new_session(prompt=[])
    one = new_session(prompt=[65], temperature=0.0)
    assert one.step().replay_error < 1e-5  # nothing before it
    assert one.steps[0].attention(0, 0).tolist() == [1.0]
    small = Session(MODEL, TOKENIZER, PROMPT, SamplingParams(seed=1), capacity=len(PROMPT) + 1)
    small.step()
    small.step()
    with pytest.raises(CacheFull):
        small.step()
    assert new_session().peek().candidates(0) == []
    with pytest.raises(ValueError, match="k must be a whole number from 0 up"):
        new_session().peek().candidates(-1)


class Debugger(RuleBasedStateMachine):
    """Random walks of step, force, rewind, fork and looking, against fresh runs."""

    @initialize(
        temperature=st.sampled_from([0.0, 0.8, 1.5]), seed=st.integers(0, 99), images=st.booleans()
    )
    def start(self, temperature: float, seed: int, images: bool) -> None:
        self.sampling = {"temperature": temperature, "top_p": 0.9, "seed": seed,
                         "frequency_penalty": 0.3}  # fmt: skip
        rows = np.random.default_rng(1).standard_normal((2, CONFIG.dim)).astype(np.float32)
        where = np.array([4, len(PROMPT) - 1])
        self.images = {"image_positions": where, "image_rows": rows} if images else {}
        self.sessions = [self.fresh()]
        self.forced: list[dict[int, int]] = [{}]

    def fresh(self) -> Session:
        params = SamplingParams(**self.sampling)  # type: ignore[arg-type]
        return Session(MODEL, TOKENIZER, PROMPT, params, **self.images)  # type: ignore[arg-type]

    @rule(which=st.integers(0, 99), n=st.integers(1, 4))
    def step(self, which: int, n: int) -> None:
        session = self.sessions[which % len(self.sessions)]
        for _ in range(n):
            session.step(beyond_end=True)

    @rule(which=st.integers(0, 99), token=st.integers(0, 255))
    def force(self, which: int, token: int) -> None:
        which %= len(self.sessions)
        self.forced[which][len(self.sessions[which].steps)] = token
        self.sessions[which].step(token=token, beyond_end=True)

    @rule(which=st.integers(0, 99), n=st.integers(0, 6))
    def rewind(self, which: int, n: int) -> None:
        which %= len(self.sessions)
        session = self.sessions[which]
        session.rewind(min(n, len(session.steps)))
        self.forced[which] = {i: t for i, t in self.forced[which].items() if i < len(session.steps)}

    @precondition(lambda self: len(self.sessions) < 4)
    @rule(which=st.integers(0, 99))
    def fork(self, which: int) -> None:
        which %= len(self.sessions)
        self.sessions.append(self.sessions[which].fork())
        self.forced.append(dict(self.forced[which]))

    @precondition(lambda self: any(s.steps for s in self.sessions))
    @rule(which=st.integers(0, 99), index=st.integers(0, 99))
    def look(self, which: int, index: int) -> None:
        stepped = [s for s in self.sessions if s.steps]
        session = stepped[which % len(stepped)]
        step = session.steps[index % len(session.steps)]
        assert step.replay_error < 1e-5
        assert step.cache.k(1).shape[0] == step.position
        session.peek()

    @precondition(lambda self: any(s.steps for s in self.sessions))
    @rule(which=st.integers(0, 99))
    def map(self, which: int) -> None:
        stepped = [s for s in self.sessions if s.steps]
        step = stepped[which % len(stepped)].steps[-1]
        assert step.causal_map().logprob == pytest.approx(step.logprob, abs=1e-4)

    @invariant()
    def equals_a_fresh_run(self) -> None:
        for session, forced in zip(self.sessions, self.forced, strict=True):
            fresh = self.fresh()
            for i, step in enumerate(session.steps):
                again = fresh.step(token=forced.get(i), beyond_end=True)
                assert (again.token, again.logprob) == (step.token, step.logprob)
                assert again.chosen_by == step.chosen_by
            assert session.tokens == fresh.tokens
            np.testing.assert_array_equal(session.peek().logits, fresh.peek().logits)


TestDebugger = Debugger.TestCase
TestDebugger.settings = settings(
    max_examples=25,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
