"""`tinyllm chat`: a conversation in the terminal, streamed as it is decoded.

Lines that begin with a slash are commands: /image PATH shows the model a picture with the next
message, /save PATH writes the trace of the last answer, /reset begins anew, /help lists them.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.markup import escape

from tinyllm.decode import Session
from tinyllm.errors import TinyllmError
from tinyllm.lm import LM
from tinyllm.terminal.console import for_terminal

HELP = """\
/image PATH …   show the model pictures with the next message
/system TEXT    what the model should be told first; begins anew
/save PATH      write the trace of the last answer, for tinyllm inspect and tinyllm.reopen
/undo           take the last question and answer back
/reset          begin anew
/quit           leave (control-D does too)
Control-C while the model answers stops the answer."""


@dataclass
class Chat:
    """A conversation: its messages, the pictures in them, and how to answer.

    Args:
        lm: the model.
        console: where answers go.
        max_tokens: of an answer.
        sampling: fields of SamplingParams.
    """

    lm: LM
    console: Console
    max_tokens: int = 512
    sampling: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)  # in the order of the messages' image parts
    waiting: list[Path] = field(default_factory=list)  # for the next message
    last: Session | None = None  # the newest answer's, for its trace

    def run(self, read_line: Callable[[], str]) -> None:
        """Read lines until EOF or /quit; an error is told, and the conversation goes on."""
        while True:
            try:
                line = read_line().strip()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if line == "/quit":
                return
            if not line:
                continue
            try:
                if line.startswith("/"):
                    self.command(line)
                else:
                    self.say(line)
            except KeyboardInterrupt:  # in a command, or just before or behind an answer
                self.console.print("[dim]stopped[/]")
            except (TinyllmError, ValueError, OSError) as error:
                self.console.print(f"[red]{escape(str(error))}[/]")

    def command(self, line: str) -> None:
        """Do what a line beginning with a slash says."""
        name, _, rest = line.partition(" ")
        if name == "/image":
            paths = [Path(p).expanduser() for p in shlex.split(rest)]
            if not paths:
                raise ValueError("which picture? /image PATH")
            missing = [p for p in paths if not p.is_file()]
            if missing:
                raise ValueError(f"there is no file {missing[0]}")
            self.waiting += paths
            names = ", ".join(p.name for p in self.waiting)
            self.console.print(f"[dim]with the next message: {escape(names)}[/]")
        elif name == "/system":
            self.reset()
            self.messages = [{"role": "system", "content": rest}] if rest else []
            self.console.print("[dim]a new conversation[/]")
        elif name == "/reset":
            self.reset()
            self.console.print("[dim]a new conversation[/]")
        elif name == "/undo":
            self.undo()
        elif name == "/save":
            if not rest.strip():
                raise ValueError("where to? /save PATH")
            self.save(Path(rest.strip()).expanduser())
        elif name == "/help":
            self.console.print(escape(HELP), style="dim")
        else:
            raise ValueError(f"there is no command {name}; /help lists them")

    def reset(self) -> None:
        """Forget everything but a system message."""
        self.messages = [m for m in self.messages if m["role"] == "system"]
        self.images, self.waiting = [], []

    def undo(self) -> None:
        """Forget the last question and its answer."""
        questions = [i for i, m in enumerate(self.messages) if m["role"] == "user"]
        if not questions:
            raise ValueError("there is nothing to take back")
        gone = self.messages[questions[-1] :]
        n_images = sum(_n_images(m) for m in gone)
        self.images = self.images[: len(self.images) - n_images]
        del self.messages[questions[-1] :]
        self.console.print("[dim]the last question is taken back[/]")

    def save(self, path: Path) -> None:
        """Write the trace of the newest answer.

        Raises:
            ValueError: there is none yet.
            OSError: the file can't be written.
        """
        if self.last is None:
            raise ValueError("there is no answer yet to save the trace of")
        saved = self.last.trace().save(path)
        self.console.print(f"[dim]saved: {escape(str(saved))}[/]")

    def say(self, text: str, out: IO[str] | None = None) -> None:
        """Ask, and print the answer as it comes; what is no answer leaves the chat as it was.

        Control-C stops the answer at any time, before its first token too, and the conversation
        goes on. The answer goes to `out` (default: the console), what is said of it to the console.
        """
        out = out or self.console.file
        content: Any = text
        if self.waiting:
            parts: list[dict[str, Any]] = [{"type": "image"} for _ in self.waiting]
            content = [*parts, {"type": "text", "text": text}]
        question = {"role": "user", "content": content}
        images = [*self.images, *self.waiting]
        self.waiting = []
        answer, n_tokens, start = "", 0, time.perf_counter()
        note, self.last = "", None  # whose KV cache is free for this one
        try:
            steps = self.lm.decode_steps(  # reads the prompt
                [*self.messages, question],
                images=images,
                max_tokens=self.max_tokens,
                **self.sampling,
            )
            for step in steps:
                self.last = step.session
                n_tokens += 1
                if step.token in self.lm.tokenizer.eos_ids:
                    break
                answer += step.text_delta
                out.write(for_terminal(step.text_delta, out))
                out.flush()
            else:
                note = ", cut at the limit"
        except KeyboardInterrupt:
            note = ", stopped"
        seconds = time.perf_counter() - start
        rate = f"{n_tokens / seconds:.0f} tokens/s" if seconds > 0 else ""
        out.write("\n")
        self.console.print(f"[dim]{n_tokens} tokens, {rate}{note}[/]")
        if note == ", stopped" and not answer:  # as if it hadn't been asked
            self.waiting = images[len(self.images) :]
            return
        self.messages += [question, {"role": "assistant", "content": answer}]
        self.images = images


def _n_images(message: dict[str, Any]) -> int:
    content = message["content"]
    return 0 if isinstance(content, str) else sum(part["type"] == "image" for part in content)
