"""`tinyllm chat`, `step` and `inspect` in a real pseudo-terminal, read off its screen."""

from __future__ import annotations

import json
import os
import signal
import sys
import termios
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pyte
import pytest
from PIL import Image, ImageDraw

import tinyllm
from tinyllm.terminal.step_keys import KEYS

ROOT = Path(__file__).resolve().parents[2]
QUESTION = "What is the capital of France?"
PATIENCE = 240  # seconds: everything here takes a few, unless others want the processor as well


class Terminal:
    """A program in a pseudo-terminal, and what its screen shows."""

    def __init__(self, *args: str, env: dict[str, str], columns: int = 100, rows: int = 30) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.process = pexpect.spawn(
            sys.executable, ["-m", "tinyllm", *args], env=env, dimensions=(rows, columns),
            timeout=PATIENCE, cwd=str(ROOT),
            # A shell's background job inherits a SIGINT that is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)

    def until(self, holds: Callable[[str], bool], seconds: float = PATIENCE) -> str:
        """Feed the screen until it shows what is waited for."""
        end = time.monotonic() + seconds
        while not holds(self.text()):
            if time.monotonic() > end:
                raise AssertionError(f"not seen on the screen:\n{self.text()}")
            try:
                self._stream.feed(self.process.read_nonblocking(65536, timeout=0.2))
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                assert holds(self.text()), f"the program has ended:\n{self.text()}"
        return self.text()

    def shows(self, text: str) -> str:
        return self.until(lambda screen: text in screen)

    def shows_times(self, text: str, times: int) -> str:
        """Wait for a whole table: the screen is read in pieces."""
        return self.until(lambda screen: screen.count(text) == times)

    def asks(self, after: str) -> str:
        """Wait for an answer and for the prompt behind it."""

        def holds(screen: str) -> bool:
            lines = [line for line in screen.splitlines() if line.strip()]
            return bool(lines) and after in screen and lines[-1].strip() == "›"

        return self.until(holds)

    def ends(self) -> int:
        self.process.expect(pexpect.EOF)
        self._stream.feed(self.process.before or b"")
        self.process.close()
        return int(self.process.exitstatus)

    def rows(self) -> list[str]:
        """The candidate lines."""
        return [line for line in self.text().splitlines() if "%" in line and "step" not in line]


@pytest.fixture
def run(weights_folder: Path, tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    env = os.environ | {
        "TERM": "xterm-256color",
        "PROMPT_TOOLKIT_NO_CPR": "1",  # nobody here to answer where the cursor is
        "XDG_STATE_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    started: list[Terminal] = []

    def start(command: str, *args: str, **size: int) -> Terminal:
        given = command == "inspect" or "--model" in args
        model = [] if given else ["--model", str(weights_folder)]
        started.append(Terminal(command, *args, *model, env=env, **size))
        return started[-1]

    yield start
    for terminal in started:
        terminal.process.close(force=True)


@pytest.mark.long
def test_stepping_with_one_key_a_token(run: Callable[..., Terminal], tmp_path: Path) -> None:
    saved = tmp_path / "trace.json"
    t = run("step", QUESTION, "--save", str(saved))
    t.shows("step 0")
    t.shows("→ ● The")
    t.process.send("\r")
    t.shows("step 1")
    t.process.send(" ")  # the space bar takes a token as well
    t.shows("step 2")
    t.shows("assistant\nThe capital")
    for n in (3, 4, 5):
        t.process.send("\r")
        t.shows(f"step {n}")
    t.shows("The capital of France is")
    t.shows("→ ● ·Paris")
    # Choose another …
    t.process.send("\x1b[B")
    second = t.until(lambda s: "→   ·" in s)
    chosen = next(line for line in second.splitlines() if line.startswith("→")).split()[1]
    t.process.send("\r")
    t.shows("step 6")
    t.shows(f"France is{chosen.replace('·', ' ')}")
    # … and go back, which finds the same candidates again.
    t.process.send("\x7f")
    t.shows("step 5")
    t.shows("→ ● ·Paris")
    t.process.send("\r")
    t.shows("France is Paris")
    t.process.send("\r")
    t.shows("Paris.")
    t.process.send("\r")
    t.shows("has ended its turn")
    t.process.send("q")
    assert t.ends() == 0
    assert "The capital of France is Paris." in t.text()
    trace = json.loads(saved.read_text())
    assert [s["text"] for s in trace["steps"]] == [
        "The", " capital", " of", " France", " is", " Paris", ".", "<|im_end|>",
    ]  # fmt: skip

    # What was saved can be looked at again.
    page = tmp_path / "trace.html"
    t = run("inspect", str(saved), "--step", "5")
    t.shows("·Paris")
    assert t.ends() == 0
    t = run("inspect", str(saved), "--html", str(page))
    assert t.ends() == 0
    assert "Paris" in page.read_text()
    t = run("inspect", str(saved), "--step", "99")
    assert t.ends() == 2
    t = run("inspect", str(tmp_path / "absent.json"))
    assert t.ends() == 1
    assert "absent.json can't be read".replace(" ", "") in "".join(t.text().split())  # it wraps


def test_filters_show_in_the_stepper(run: Callable[..., Terminal]) -> None:
    t = run("step", "Once upon a", "--raw", "--temperature", "0.8", "--top-k", "3", "--seed", "1")
    t.shows("top_k 3")
    t.shows_times("cut by top_k", 9)
    t.process.send("\x7f")
    t.shows("this is where the answer begins")
    t.process.sendcontrol("c")
    assert t.ends() == 0


def test_everything_fits_sixty_columns(run: Callable[..., Terminal]) -> None:
    t = run("step", QUESTION, "--temperature", "0.8", "--top-k", "3", columns=60, rows=26)
    t.shows("step 0, temperature 0.8")
    t.shows_times("cut by top_k", 9)
    for key, what in KEYS:
        t.shows(f"{key} {what}")
    t.process.send("tThe capital\r")
    t.shows("forced 2 tokens")
    t.shows("assistant\nThe capital")
    t.process.send("f--")
    t.shows("branch 2 of 2, step 2, temperature 0.6")
    t.process.send("\r\r\ra")
    t.shows("layer 20 ([ and ] change it) looks from ·is")
    t.shows_times("head ", 9)
    t.process.send("a")
    t.shows("p of ·Paris")
    t.shows("layer 29")
    t.process.send("\t")
    t.shows("branch 1 of 2, step 2, temperature 0.8")
    t.process.send("q")
    assert t.ends() == 0


def test_stepping_needs_a_terminal() -> None:
    import subprocess

    done = subprocess.run(
        [sys.executable, "-m", "tinyllm", "step", "Hello"], cwd=ROOT, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 2
    assert "needs a terminal" in done.stderr


def test_a_conversation(run: Callable[..., Terminal], tmp_path: Path) -> None:
    t = run("chat", "--model", "smollm2-135m-instruct", "--temperature", "0", "--max-tokens", "24")
    t.asks("")
    t.process.send(QUESTION + "\r")
    t.asks("The capital of France is Paris.")
    saved = tmp_path / "answer.json"
    t.process.send(f"/save {saved}\r")
    t.asks("saved:")
    t.process.send("And of Italy?\r")  # the history is in the prompt: it knows what "of" is about
    t.asks("Rome")
    t.process.send("/image nowhere.png\r")
    t.asks("there is no file nowhere.png")
    picture = tmp_path / "dot.png"
    Image.new("RGB", (8, 8)).save(picture)
    t.process.send(f"/image {picture}\r")
    t.asks("with the next message: dot.png")
    t.process.send("What is this?\r")
    t.asks("reads text alone")
    t.process.send("/undo\r")
    t.asks("the last question is taken back")
    t.process.send("/reset\r")
    t.asks("a new conversation")
    t.process.send("/what\r")
    t.asks("there is no command /what")
    t.process.send("Write a long story about a lighthouse.\r")
    t.asks("24 tokens")
    t.asks("cut at the limit")
    t.process.sendcontrol("d")
    assert t.ends() == 0
    assert QUESTION in (tmp_path / "tinyllm" / "chat_history").read_text()
    # What was saved is opened again, on the same path: its numbers are the same, to the bit.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = tinyllm.reopen(saved)
    assert again.text.removesuffix("<|im_end|>") == "The capital of France is Paris."
    assert again.finished


@pytest.mark.long
def test_a_conversation_about_a_picture(
    run: Callable[..., Terminal], dinov2_folder: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "shape.png"
    image = Image.new("RGB", (200, 200), "white")
    ImageDraw.Draw(image).ellipse((50, 50, 150, 150), fill=(214, 40, 40))
    image.save(picture)
    sees = ("--model", "smollm2-135m-vision", "--temperature", "0", "--no-history")
    t = run("chat", *sees, "--image", str(picture))
    t.asks("with the next message: shape.png")
    t.process.send("What is in this image?\r")
    t.asks("a red circle on a white background")
    t.process.sendcontrol("d")
    assert t.ends() == 0


@pytest.mark.long
def test_control_c_before_the_first_token_keeps_the_conversation(
    run: Callable[..., Terminal],
) -> None:
    t = run("chat", "--temperature", "0", "--max-tokens", "24", "--no-history", columns=200)
    t.asks("")
    t.process.send(QUESTION + "\r")
    t.asks("The capital of France is Paris.")
    pasted = "What of all this? " + "far and wide " * 600  # a second to read, or more
    t.process.send(f"\x1b[200~{pasted}\x1b[201~\r")
    while not termios.tcgetattr(t.process.fileno())[3] & termios.ICANON:  # the line is taken
        t.until(lambda _: True)
        time.sleep(0.02)
    time.sleep(0.3)
    t.process.sendcontrol("c")
    t.asks("stopped")
    assert "0 tokens" in t.text()
    t.process.send("And of Italy?\r")  # it still knows what "of" is about
    t.asks("Rome")
    t.process.sendcontrol("c")  # at the prompt it does nothing
    t.process.send("/quit\r")
    assert t.ends() == 0


def test_control_c_stops_an_answer_and_not_the_chat(run: Callable[..., Terminal]) -> None:
    t = run("chat", "--temperature", "0", "--max-tokens", "400", "--no-history")
    t.asks("")
    t.process.send("Write a long story about a lighthouse.\r")
    t.shows("the ")  # it has begun
    time.sleep(0.5)
    t.process.sendcontrol("c")
    t.asks("stopped")
    t.process.send("/quit\r")
    assert t.ends() == 0
