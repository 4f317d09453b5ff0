"""`tinyllm chat` without a terminal or a model: history, pictures, commands and interruptions.

`test_terminal.py` runs it in a real pseudo-terminal on the real weights.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image
from rich.console import Console

from tests.tiny import EOS, bytes_tokenizer, tiny_model
from tinyllm.decode import Session
from tinyllm.errors import ImageError
from tinyllm.inside.trace_file import load_trace
from tinyllm.lm import LM
from tinyllm.terminal.chat import HELP, Chat
from tinyllm.tokenizer import Tokenizer


@dataclass
class Said:
    """A step as far as a chat looks at it."""

    token: int
    text_delta: str
    session: Any = None


@dataclass
class Parrot:
    """Stands for a model: answers with what it is told to, and takes notes of what it was asked."""

    answers: list[str] = field(default_factory=lambda: ["Hello!"] * 9)
    asked: list[tuple[Any, list[Path]]] = field(default_factory=list)
    limits: list[dict[str, Any]] = field(default_factory=list)
    tokenizer: Tokenizer = field(default_factory=bytes_tokenizer)
    interrupt_after: int | None = None
    fault: Exception | None = None
    session: Any = None  # what each step belongs to

    def decode_steps(
        self, messages: list[Any], *, images: list[Path], max_tokens: int, **sampling: Any
    ) -> Iterator[Said]:
        if self.fault is not None:
            raise self.fault
        self.asked.append((copy.deepcopy(messages), list(images)))
        self.limits.append({"max_tokens": max_tokens, **sampling})
        return self._steps(self.answers.pop(0), max_tokens)

    def _steps(self, answer: str, max_tokens: int) -> Iterator[Said]:
        steps = [
            *(Said(ord(c) % 256, c, self.session) for c in answer),
            Said(EOS, "<end>", self.session),
        ]
        for i, step in enumerate(steps[:max_tokens]):
            if i == self.interrupt_after:
                raise KeyboardInterrupt
            yield step


@pytest.fixture
def parrot() -> Parrot:
    return Parrot()


@pytest.fixture
def chat(parrot: Parrot) -> Chat:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    return Chat(cast(LM, parrot), console, sampling={"temperature": 0.5})


def printed(chat: Chat) -> str:
    return cast(io.StringIO, chat.console.file).getvalue()


def typing(*lines: Any) -> Callable[[], str]:
    """A terminal in which these lines are typed, then control-D; exceptions are raised."""
    left = iter(lines)

    def read_line() -> str:
        line = next(left, EOFError())
        if isinstance(line, BaseException):
            raise line
        return str(line)

    return read_line


def contents(messages: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    return [(m["role"], m["content"]) for m in messages]


def test_the_history_is_in_every_question(chat: Chat, parrot: Parrot) -> None:
    parrot.answers = ["Paris.", "Rome."]
    chat.run(typing("And of France?", "", "  And of Italy?  "))
    first, second = (contents(messages) for messages, _ in parrot.asked)
    assert first == [("user", "And of France?")]
    assert second == [*first, ("assistant", "Paris."), ("user", "And of Italy?")]
    assert contents(chat.messages)[-1] == ("assistant", "Rome.")
    assert "Paris." in printed(chat)
    assert "<end>" not in printed(chat)
    assert parrot.limits[0] == {"max_tokens": 512, "temperature": 0.5}
    assert "7 tokens" in printed(chat)  # the end of the turn is one


def test_a_cut_answer_says_so(chat: Chat, parrot: Parrot) -> None:
    chat.max_tokens = 3
    chat.run(typing("Hi"))
    assert "3 tokens" in printed(chat)
    assert "cut at the limit" in printed(chat)
    assert contents(chat.messages)[-1] == ("assistant", "Hel")


def test_control_c_stops_the_answer_and_keeps_what_was_said(chat: Chat, parrot: Parrot) -> None:
    parrot.interrupt_after = 2
    chat.run(typing("Hi", "/quit", "never read"))
    assert ", stopped" in printed(chat)
    assert contents(chat.messages) == [("user", "Hi"), ("assistant", "He")]
    assert len(parrot.asked) == 1


def test_control_c_at_the_prompt_does_nothing(chat: Chat, parrot: Parrot) -> None:
    chat.run(typing(KeyboardInterrupt(), "Hi"))
    assert len(parrot.asked) == 1


def test_pictures_go_with_the_next_message(chat: Chat, parrot: Parrot, tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "with space.png"]
    for path in paths:
        Image.new("RGB", (4, 4)).save(path)
    chat.run(typing(f"/image {paths[0]}", f"/image '{paths[1]}'", "What are these?", "And now?"))
    (first, first_images), (second, second_images) = parrot.asked
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What are these?"}]
    assert first[0]["content"] == parts
    assert first_images == second_images == paths
    assert second[0]["content"] == parts and second[2]["content"] == "And now?"
    assert "with the next message: a.png, with space.png" in printed(chat)


def test_undo_takes_question_answer_and_pictures_back(
    chat: Chat, parrot: Parrot, tmp_path: Path
) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(picture)
    chat.run(typing("One", f"/image {picture}", "Two", "/undo", "Three"))
    messages, images = parrot.asked[-1]
    assert [m["content"] for m in messages if m["role"] == "user"] == ["One", "Three"]
    assert images == []
    chat.run(typing("/undo", "/undo", "/undo"))
    assert chat.messages == []
    assert "there is nothing to take back" in printed(chat)


def test_system_and_reset(chat: Chat, parrot: Parrot) -> None:
    chat.run(typing("/system Answer in rhyme.", "Hi", "/reset", "Hi again", "/system", "Last"))
    asked = [contents(messages) for messages, _ in parrot.asked]
    assert asked[0] == [("system", "Answer in rhyme."), ("user", "Hi")]
    assert asked[1] == [("system", "Answer in rhyme."), ("user", "Hi again")]
    assert asked[2] == [("user", "Last")]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/image", "which picture?"),
        ("/image nowhere.png", "there is no file nowhere.png"),
        ("/image 'open", "No closing quotation"),
        ("/dance [now]", "there is no command /dance"),
        ("/undo", "there is nothing to take back"),
    ],
)
def test_mistakes_are_told_and_the_chat_goes_on(
    chat: Chat, parrot: Parrot, line: str, told: str
) -> None:
    chat.run(typing(line, "Hi"))
    assert told in printed(chat)
    assert len(parrot.asked) == 1


def test_help_lists_every_command(chat: Chat) -> None:
    chat.run(typing("/help"))
    for line in HELP.splitlines():
        assert line in printed(chat)


def test_a_fault_leaves_the_conversation_as_it_was(chat: Chat, parrot: Parrot) -> None:
    chat.run(typing("Hi"))
    before = copy.deepcopy(chat.messages)
    parrot.fault = ImageError("a [bold] fault")
    chat.run(typing("Look"))
    assert chat.messages == before
    assert "a [bold] fault" in printed(chat)  # no markup of ours
    parrot.fault = None
    chat.run(typing("Hi"))
    assert len(chat.messages) == 4


def test_what_looks_like_markup_in_an_answer_is_text(chat: Chat, parrot: Parrot) -> None:
    parrot.answers = ["[red]not red[/red] 🙂"]
    chat.run(typing("Hi"))
    assert "[red]not red[/red] 🙂" in printed(chat)


def test_the_newest_answers_trace_is_saved(chat: Chat, parrot: Parrot, tmp_path: Path) -> None:
    chat.run(typing(f"/save {tmp_path / 'early.json'}", "/save"))
    assert "there is no answer yet" in printed(chat)
    assert "where to? /save PATH" in printed(chat)
    parrot.session = Session(tiny_model(), bytes_tokenizer(), list(b"Hi"))
    parrot.session.run(3)
    saved = tmp_path / "an answer.json"
    chat.run(typing("Hello", f"/save {saved}", f"/save {tmp_path / 'none' / 'x.json'}"))
    assert load_trace(saved) == parrot.session.trace()
    assert f"saved: {saved}" in printed(chat).replace("\n", "")
    assert "No such file" in printed(chat)
    assert not (tmp_path / "early.json").exists()
