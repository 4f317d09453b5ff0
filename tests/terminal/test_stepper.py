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
from tinyllm.terminal.stepper import TOKEN_WIDTH, Stepper, application

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
    assert "this is where the answer begins" in plain(stepper.keys())


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
    assert "step 1" in plain(stepper.keys())


def test_the_end_of_the_turn_is_said() -> None:
    stepper = Stepper(open_session(temperature=0))
    stepper.session.step(token=256)
    stepper.view = stepper._look()
    assert "the model has ended its turn" in plain(stepper.keys())


def test_a_long_token_is_cut_to_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(temperature=0)
    monkeypatch.setattr(type(session.tokenizer), "token_text", lambda self, t: " long" * 9)
    lines = plain(Stepper(session).table()).splitlines()
    assert all("…" in line for line in lines)
    assert len({line.index("%") for line in lines}) == 1  # columns stay columns
    assert all(len(line) < 4 + TOKEN_WIDTH + 60 for line in lines)
