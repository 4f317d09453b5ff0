"""`tinyllm step` without a terminal: what its keys do to the session, and what it draws.

`test_terminal.py` runs it in a real pseudo-terminal.
"""

from __future__ import annotations

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from tests.tiny import bytes_tokenizer, tiny_model
from tinyllm.decode import Session
from tinyllm.sampler import SamplingParams
from tinyllm.terminal.step_keys import application
from tinyllm.terminal.stepper import TOKEN_WIDTH, Stepper

MODEL = tiny_model()
PROMPT = list(b"Once upon a time")
DOWN, UP, RIGHT, LEFT, BACKSPACE = "\x1b[B", "\x1b[A", "\x1b[C", "\x1b[D", "\x7f"


def open_session(capacity: int = 60, **sampling: object) -> Session:
    params = SamplingParams(**{"seed": 4, **sampling})  # type: ignore[arg-type]
    return Session(MODEL, bytes_tokenizer(), PROMPT, params, capacity=capacity)


def press(stepper: Stepper, keys: str) -> None:
    """Run the program on these keys, then q."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys + "q")
        application(stepper, pipe, DummyOutput()).run()


def plain(drawn: StyleAndTextTuples) -> str:
    return "".join(part[1] for part in drawn if not part[0].startswith("["))


def test_enter_takes_what_the_sampler_would_draw() -> None:
    stepper = Stepper(open_session(temperature=0.9))
    press(stepper, "\r\r \r" + RIGHT)
    fresh = open_session(temperature=0.9)
    assert [s.token for s in stepper.session.steps] == [fresh.step().token for _ in range(5)]
    assert {s.chosen_by for s in stepper.session.steps} == {"sample"}


def test_another_candidate_is_forced() -> None:
    stepper = Stepper(open_session(temperature=0))
    second = stepper.view.candidates[1].token
    press(stepper, DOWN + "\r")
    assert [s.token for s in stepper.session.steps] == [second]
    assert stepper.session.steps[0].chosen_by == "forced"
    styles = {style for style, *_ in stepper.text()}
    assert "class:forced" in styles


def test_up_and_down_go_round() -> None:
    stepper = Stepper(open_session(temperature=0), n_candidates=5)
    press(stepper, UP)
    assert stepper.view.marked == 4
    press(stepper, DOWN)
    assert stepper.view.marked == 0
    press(stepper, DOWN + DOWN + UP + "\r")
    assert stepper.session.steps[0].token != stepper.session.steps[0].candidates(1)[0].token


def test_backspace_finds_the_same_candidates_again() -> None:
    stepper = Stepper(open_session(temperature=0.9))
    press(stepper, "\r\r")
    before = stepper.table()
    press(stepper, "\r" + BACKSPACE)
    assert stepper.table() == before
    press(stepper, LEFT + BACKSPACE + BACKSPACE)
    assert not stepper.session.steps
    assert "this is where the answer begins" in plain(stepper.status())


@pytest.mark.parametrize("key", ["q", "\x03", "\x04"])
def test_ways_out(key: str) -> None:
    stepper = Stepper(open_session())
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(key)
        application(stepper, pipe, DummyOutput()).run()


def test_the_draw_is_always_among_the_candidates() -> None:
    """However unlikely it was."""
    for seed in range(12):
        stepper = Stepper(open_session(temperature=2.0, seed=seed), n_candidates=3)
        view = stepper.view
        assert len(view.candidates) == 3
        assert view.candidates[view.marked].token == view.drawn
        press(stepper, "\r")
        assert stepper.session.steps[0].token == view.drawn
        assert stepper.session.steps[0].chosen_by == "sample"


def test_a_full_context_says_so_and_stays_usable() -> None:
    stepper = Stepper(open_session(capacity=len(PROMPT) + 2, temperature=0))
    press(stepper, "\r" * 6)
    assert "the KV cache holds" in stepper.view.note
    n = len(stepper.session.steps)
    press(stepper, BACKSPACE)
    assert len(stepper.session.steps) == n - 1
    assert not stepper.view.note


def test_what_the_screen_says() -> None:
    stepper = Stepper(open_session(temperature=0.8, top_k=3), n_candidates=6)
    table = plain(stepper.table())
    assert len(table.splitlines()) == 6
    assert table.count("→") == 1
    assert table.count("●") == 1
    assert table.count("cut by top_k") == 3
    assert "257 tokens → top_k 3" in plain(stepper.stages())
    assert f"entropy {stepper.view.choice.entropy:.2f} nats" in plain(stepper.stages())
    assert plain(stepper.text()).startswith("Once upon a time")
    press(stepper, "\r")
    assert "step 1" in plain(stepper.status())


def test_the_end_of_the_turn_is_said() -> None:
    stepper = Stepper(open_session(temperature=0))
    stepper.session.step(token=256)
    stepper.view = stepper._look()
    assert "the model has ended its turn" in plain(stepper.status())


def test_a_long_token_is_cut_to_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(temperature=0)
    monkeypatch.setattr(type(session.tokenizer), "token_text", lambda *_: " long" * 9)
    lines = plain(Stepper(session).table()).splitlines()
    assert all("…" in line for line in lines)
    assert len({line.index("%") for line in lines}) == 1  # columns stay columns
    assert all(len(line) < 4 + TOKEN_WIDTH + 60 for line in lines)


def test_a_text_is_typed_and_taken() -> None:
    stepper = Stepper(open_session(temperature=0))
    press(stepper, "t, fq t\r")  # keys are letters while one types
    assert stepper.session.text == ", fq t"
    assert {s.chosen_by for s in stepper.session.steps} == {"forced"}
    assert "forced 6 tokens" in plain(stepper.status())
    press(stepper, "t\r\r")  # nothing typed, nothing forced
    assert len(stepper.session.steps) == 7


def test_a_text_that_doesnt_fit_is_refused_whole() -> None:
    stepper = Stepper(open_session(capacity=len(PROMPT) + 3))
    stepper.force("four")
    assert not stepper.session.steps
    assert "no room for 4 more tokens" in plain(stepper.status())
    stepper.force("two")
    assert stepper.session.text == "two"


def test_typing_can_be_given_up() -> None:
    stepper = Stepper(open_session())
    press(stepper, "tnot this\x03")
    assert not stepper.session.steps


def test_branches() -> None:
    stepper = Stepper(open_session(temperature=0))
    press(stepper, "\rf\r\r\t")  # a step; a fork, two more in it; back to the first
    assert [len(branch.steps) for branch in stepper.branches] == [1, 3]
    assert "branch 1 of 2, step 1" in plain(stepper.status())
    first = stepper.branches[0].tokens
    press(stepper, "\t" + BACKSPACE + "tx\r")
    assert stepper.branch == 1
    assert stepper.session.text.endswith("x")
    assert stepper.branches[0].tokens == first
    one = Stepper(open_session())
    press(one, "\t")
    assert "there is one branch; f forks it" in plain(one.status())


def test_temperature_up_and_down() -> None:
    stepper = Stepper(open_session(temperature=1.9))
    press(stepper, "\r++++")
    assert "temperature 2" in plain(stepper.status())
    press(stepper, "\r" + "-" * 25)
    assert stepper.session.params.temperature == 0
    press(stepper, "\r+")
    assert [s.params.temperature for s in stepper.session.steps] == [1.9, 2.0, 0.0]
    assert stepper.session.params.temperature == 0.1


def test_attention_and_lens_of_the_newest_token() -> None:
    stepper = Stepper(open_session(temperature=0))
    assert stepper.layer == 2
    press(stepper, "\ra")
    newest, choice = stepper.session.texts[-1], stepper.view.choice
    lines = plain(stepper.body(60)).splitlines()
    assert lines[0].startswith("  layer 2") and lines[0].endswith(newest)
    weights = choice.attention(2, 3)
    assert f"{weights.max():.1%}" in lines[4] and lines[4].startswith("  head 3")
    press(stepper, "]")
    assert stepper.layer == 0
    press(stepper, "[[a")
    assert stepper.layer == 1
    lines = plain(stepper.body(60)).splitlines()
    assert [line[2:12].strip() for line in lines] == [
        "depth", "embedding", "layer 0", "layer 1", "layer 2",
    ]  # fmt: skip
    last = choice.logit_lens(1)[3]
    assert last.top[0][1] in lines[4]
    assert all(len(line) <= 60 for line in lines)
    press(stepper, "a")
    assert stepper.panel == "candidates"


@pytest.mark.parametrize("width", [40, 60, 76, 120])
def test_why_a_candidate_was_cut_is_on_the_screen(width: int) -> None:
    for sampling, reason in (({"temperature": 0}, "temperature"), ({"top_k": 2}, "top_k")):
        stepper = Stepper(open_session(**sampling), n_candidates=5)
        lines = plain(stepper.table(width)).splitlines()
        assert all(len(line) <= width for line in lines)
        assert sum(line.endswith(reason) for line in lines) >= 3


def test_a_character_that_is_begun_shows_its_bytes() -> None:
    stepper = Stepper(open_session(temperature=0))
    for token in "东".encode()[:2]:
        stepper.session.step(token=token)
    stepper.view = stepper._look()
    assert plain(stepper.text()).endswith("⟨e4b8⟩")
    stepper.session.step(token="东".encode()[2])
    assert plain(stepper.text()).endswith("东")


def test_guesses_are_shown_and_judged() -> None:
    session = Session(MODEL, bytes_tokenizer(), list(b"one two one t"), SamplingParams(seed=1))
    stepper = Stepper(session)
    assert "guessed from the text: wo·o" in plain(stepper.stages())
    token = stepper.view.candidates[0].token
    assert token != ord("w")
    press(stepper, "\r")
    assert "the guess w is thrown away" in plain(stepper.status())
    press(stepper, BACKSPACE)
    stepper.view.candidates[0] = stepper.view.choice.candidate(ord("w"))
    stepper.view.marked = 0
    press(stepper, "\r")
    assert "the guess w is kept" in plain(stepper.status())


def test_a_guess_is_what_it_makes_of_a_begun_character() -> None:
    prompt = "东 and 东 and ".encode() + "东".encode()[:2]
    stepper = Stepper(Session(MODEL, bytes_tokenizer(), list(prompt), SamplingParams(seed=1)))
    assert "guessed from the text: 东⟨9c⟩·an" in plain(stepper.stages())
    press(stepper, "\r")
    assert "the guess 东⟨9c⟩ is" in plain(stepper.status())


def test_past_the_end_one_goes_on() -> None:
    stepper = Stepper(open_session(temperature=0))
    stepper.session.step(token=256)
    stepper.view = stepper._look()
    press(stepper, "\r")
    assert len(stepper.session.steps) == 2
