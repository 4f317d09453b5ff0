"""`tinyllm step`: decoding in the terminal, one key a token.

The text so far on top, the candidates for the next token as bars below it. Enter takes the one
that is marked; it starts on what the sampler would draw. Up and down mark another, and backspace
goes back.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from prompt_toolkit import Application
from prompt_toolkit.application import get_app
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import FormattedTextControl, HSplit, Layout, Window
from prompt_toolkit.output import Output
from prompt_toolkit.styles import Style

from tinyllm.decode import Session
from tinyllm.errors import CacheFull
from tinyllm.step import Candidate, NextToken
from tinyllm.text.shown import bar, percent, visible

N_CANDIDATES = 12
BAR_WIDTH = 24
TOKEN_WIDTH = 18

STYLE = Style.from_dict(
    {
        "prompt": "ansibrightblack",
        "surprise": "ansiyellow",
        "forced": "ansimagenta bold",
        "rule": "ansibrightblack",
        "marked": "reverse",
        "raw": "ansiblue",
        "drawn": "ansigreen bold",
        "cut": "ansired",
        "faint": "ansibrightblack",
        "key": "bold",
    }
)


@dataclass
class View:
    """What the screen shows of a session: the choice, its candidates and the marked one."""

    session: Session
    choice: NextToken
    candidates: list[Candidate]
    drawn: int  # the token that the sampler would take
    marked: int  # index into candidates
    note: str = ""


class Stepper:
    """The state behind the screen: a session, and which candidate is marked.

    Args:
        session: where to begin.
        n_candidates: rows to show; what the sampler would draw is always among them.
    """

    def __init__(self, session: Session, n_candidates: int = N_CANDIDATES) -> None:
        self.session = session
        self.n_candidates = n_candidates
        self.view = self._look()

    def _look(self, note: str = "") -> View:
        try:
            choice = self.session.peek()
        except CacheFull as error:  # the newest token has no room: take it back
            self.session.rewind(1)
            return self._look(str(error))
        # A draw hangs on seed and place alone, so it can be told before it is made.
        drawn = choice.sampler.fork().pick(choice.logits).token
        candidates = list(choice.candidates(self.n_candidates))
        if all(c.token != drawn for c in candidates):
            candidates[-1:] = [choice.candidate(drawn)]
        marked = next(i for i, c in enumerate(candidates) if c.token == drawn)
        return View(self.session, choice, candidates, drawn, marked, note)

    def take(self) -> None:
        """Step: the sampler's choice where that is marked, else force the marked token."""
        token = self.view.candidates[self.view.marked].token
        self.session.step(None if token == self.view.drawn else token)
        self.view = self._look()

    def mark(self, by: int) -> None:
        """Move the mark up or down."""
        self.view.marked = (self.view.marked + by) % len(self.view.candidates)

    def back(self) -> None:
        """Take the newest token back."""
        if self.session.steps:
            self.session.rewind(1)
            self.view = self._look()
        else:
            self.view.note = "this is where the answer begins"

    # What is drawn: lists of (style, text).

    def text(self) -> StyleAndTextTuples:
        """Prompt and completion; a token's colour says how it came about."""
        session = self.session
        out: StyleAndTextTuples = [("class:prompt", prompt_text(session))]
        for step in session.steps:
            style = "class:forced" if step.chosen_by == "forced" else ""
            if not style and step.logprob < -2:
                style = "class:surprise"
            out.append((style, step.text_delta))
        return [*out, ("[SetCursorPosition]", "")]  # the window keeps this in sight

    def table(self) -> StyleAndTextTuples:
        """A line a candidate: mark, token, its raw probability as a bar, what it was drawn with."""
        out: StyleAndTextTuples = []
        for i, c in enumerate(self.view.candidates):
            marked = i == self.view.marked
            sampler = "●" if c.token == self.view.drawn else " "
            token = visible(c.text)
            if len(token) > TOKEN_WIDTH:
                token = token[: TOKEN_WIDTH - 1] + "…"
            out += [
                ("class:key", "→ " if marked else "  "),
                ("class:drawn", f"{sampler} "),
                ("class:marked" if marked else "", token.ljust(TOKEN_WIDTH)),
                ("", f" {percent(c.p_raw):>7} "),
                ("class:raw", bar(c.p_raw, BAR_WIDTH).ljust(BAR_WIDTH)),
                ("class:cut", f" cut by {c.cut_by}\n")
                if c.cut_by
                else ("class:drawn", f" {percent(c.p):>7}\n"),
            ]
        return out

    def stages(self) -> StyleAndTextTuples:
        """How many tokens each filter left, and the entropy before them."""
        stages = self.view.choice.stages
        words = [f"{stages[0].n_kept:,} tokens"]
        for before, stage in itertools.pairwise(stages):
            if stage.n_kept != before.n_kept:
                words.append(f"{stage.name} {stage.n_kept:,}")
        entropy = f"entropy {self.view.choice.entropy:.2f} nats"
        return [("class:faint", f"  {' → '.join(words)};  {entropy}")]

    def keys(self) -> StyleAndTextTuples:
        """What can be pressed, or what has just happened."""
        session = self.session
        state = f"step {len(session.steps)}"
        if session.finished:
            state += ", the model has ended its turn"
        if self.view.note:
            state = self.view.note
        out: StyleAndTextTuples = [("class:key", f"  {state}   ")]
        for key, what in (("enter", "take →"), ("↑↓", "mark another"), ("backspace", "go back"),
                          ("q", "quit")):  # fmt: skip
            out += [("class:key", key), ("class:faint", f" {what}   ")]
        return out


def prompt_text(session: Session) -> str:
    """A session's prompt, with a sign for each image in place of the tokens that it takes."""
    images = set() if session.image_positions is None else set(session.image_positions.tolist())
    text = ""
    for is_image, run in itertools.groupby(range(len(session.prompt)), images.__contains__):
        ids = [session.prompt[i] for i in run]
        text += f"[image, {len(ids)} rows]" if is_image else session.tokenizer.decode(ids)
    return text


def application(
    stepper: Stepper, input: Input | None = None, output: Output | None = None
) -> Application[None]:
    """The full-screen program around a stepper."""
    keys = KeyBindings()

    @keys.add("enter")
    @keys.add(" ")
    @keys.add("right")
    def _take(event: KeyPressEvent) -> None:
        stepper.take()

    @keys.add("down")
    @keys.add("up")
    def _mark(event: KeyPressEvent) -> None:
        stepper.mark(1 if event.key_sequence[0].key == "down" else -1)

    @keys.add("backspace")
    @keys.add("left")
    def _back(event: KeyPressEvent) -> None:
        stepper.back()

    @keys.add("q")
    @keys.add("c-c")
    @keys.add("c-d")
    def _quit(event: KeyPressEvent) -> None:
        get_app().exit()

    rule = Window(height=1, char="─", style="class:rule")
    rows = stepper.n_candidates
    layout = HSplit(
        [
            Window(FormattedTextControl(stepper.text, focusable=True), wrap_lines=True),
            rule,
            Window(FormattedTextControl(stepper.table), height=rows, dont_extend_height=True),
            Window(FormattedTextControl(stepper.stages), height=1),
            Window(FormattedTextControl(stepper.keys), height=1),
        ]
    )
    return Application(
        Layout(layout),
        key_bindings=keys,
        style=STYLE,
        full_screen=True,
        input=input,
        output=output,
    )
