"""What `tinyllm step` shows, and what its keys do to a session; `step_keys.py` has the keys.

The text so far on top, the candidates for the next token as bars below it, or instead of them what
went on inside. The mark starts on what the sampler would draw. Branches are forks of one session.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from prompt_toolkit.formatted_text import StyleAndTextTuples

from tinyllm.decode import Session
from tinyllm.engine.lookup import Lookup
from tinyllm.errors import CacheFull
from tinyllm.step import Candidate, NextToken
from tinyllm.text.shown import bar, percent, visible

N_CANDIDATES = 12
BAR_WIDTH = 24
TOKEN_WIDTH = 18
CUT_WIDTH = len(" cut by temperature")  # the longest of the reasons
NARROW = 56  # columns; below this "cut by" is left out
Panel = Literal["candidates", "attention", "lens"]
MOST_GUESSED = 4
PANELS: tuple[Panel, ...] = ("candidates", "attention", "lens")


@dataclass
class View:
    """What the screen shows of a session: the choice, its candidates and the marked one."""

    session: Session
    choice: NextToken
    candidates: list[Candidate]
    drawn: int  # the token that the sampler would take
    marked: int  # index into candidates
    guess: list[int]  # what lookup decoding would run along, had it the choice
    note: str = ""


class Stepper:
    """The state behind the screen: branches of a session, and which candidate is marked.

    Args:
        session: where to begin.
        n_candidates: rows to show; what the sampler would draw is always among them.
    """

    def __init__(self, session: Session, n_candidates: int = N_CANDIDATES) -> None:
        self.branches, self.branch = [session], 0
        self.n_candidates = n_candidates
        self.panel: Panel = "candidates"
        self.layer = session.runner.config.n_layers * 2 // 3
        self.view = self._look()

    @property
    def session(self) -> Session:
        """The branch on the screen."""
        return self.branches[self.branch]

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
        return View(self.session, choice, candidates, drawn, marked, self._guess(), note)

    def _guess(self) -> list[int]:
        """The next tokens, if the text's newest words have occurred before: see engine/lookup.py.

        A server runs them in one pass, and keeps those that are drawn; here they are only shown.
        """
        ids = np.array(self.session.tokens, np.int64)
        if self.session.image_positions is not None:
            ids[self.session.image_positions] = -1
        return Lookup(ids, 1).guesses(MOST_GUESSED)[0]

    def _shown(self, guess: list[int]) -> list[str]:
        """Guessed tokens for display: what they make of a character that the text has begun."""
        last = self.session.tokens[-3:]  # a character is at most four tokens
        return self.session.tokenizer.token_texts([*last, *guess])[len(last) :]

    # What keys do.

    def take(self) -> None:
        """Step: the sampler's choice where that is marked, else force the marked token."""
        token = self.view.candidates[self.view.marked].token
        guess, shown = self.view.guess, self._shown(self.view.guess)
        self.session.step(None if token == self.view.drawn else token, beyond_end=True)
        self.view = self._look()
        if guess and not self.view.note:
            verdict = "kept" if guess[0] == token else "thrown away, and what was guessed behind it"
            self.view.note = f"the guess {visible(shown[0])} is {verdict}"

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

    def force(self, text: str) -> None:
        """Take a text's tokens, whatever the model says: all of them, or none that don't fit."""
        ids = self.session.tokenizer.encode(text)
        if len(self.session.tokens) + len(ids) > self.session.cache.capacity:
            self.view.note = f"there is no room for {len(ids)} more tokens"
            return
        for token in ids:
            self.session.step(token, beyond_end=True)
        self.view = self._look(f"forced {len(ids)} {'token' if len(ids) == 1 else 'tokens'}")

    def fork(self) -> None:
        """Go on in a branch of its own; the other one stays as it is."""
        self.branches.append(self.session.fork())
        self.branch = len(self.branches) - 1
        self.view = self._look(f"branch {len(self.branches)} begins here")

    def switch(self) -> None:
        """To the next branch."""
        self.branch = (self.branch + 1) % len(self.branches)
        self.view = self._look("" if len(self.branches) > 1 else "there is one branch; f forks it")

    def heat(self, by: float) -> None:
        """Another temperature, from the next token on: 0 to 2."""
        before = self.session.params.temperature
        self.session.set(temperature=min(max(round(before + by, 1), 0.0), 2.0))
        self.view = self._look()

    def turn(self) -> None:
        """The next panel: candidates, attention of the newest token, its logit lens."""
        self.panel = PANELS[(PANELS.index(self.panel) + 1) % len(PANELS)]

    def move_layer(self, by: int) -> None:
        """Another layer's attention."""
        self.layer = (self.layer + by) % self.session.runner.config.n_layers

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
        if begun := session.tokenizer.unfinished(session.tokens):
            out.append(("class:faint", f"⟨{begun.hex()}⟩"))  # of a character that isn't whole yet
        return [*out, ("[SetCursorPosition]", "")]  # the window keeps this in sight

    def body(self, width: int) -> StyleAndTextTuples:
        """The panel that is turned to, as many lines as there are candidates."""
        if self.panel == "attention":
            return self.attention(width)
        return self.lens(width) if self.panel == "lens" else self.table(width)

    def table(self, width: int = 100) -> StyleAndTextTuples:
        """A line a candidate: mark, token, its raw probability as a bar, what it was drawn with."""
        cut = "cut by " if width >= NARROW else ""
        token_width = min(TOKEN_WIDTH, max(8, width // 4))
        rest = width - 4 - token_width - 9 - CUT_WIDTH + (0 if cut else len("cut by "))
        bar_width = min(BAR_WIDTH, max(3, rest))
        out: StyleAndTextTuples = []
        for i, c in enumerate(self.view.candidates):
            marked = i == self.view.marked
            sampler = "●" if c.token == self.view.drawn else " "
            out += [
                ("class:key", "→ " if marked else "  "),
                ("class:drawn", f"{sampler} "),
                ("class:marked" if marked else "", fitted(c.text, token_width)),
                ("", f" {percent(c.p_raw):>7} "),
                ("class:raw", bar(c.p_raw, bar_width).ljust(bar_width)),
                ("class:cut", f" {cut}{c.cut_by}\n")
                if c.cut_by
                else ("class:drawn", f" {percent(c.p):>7}\n"),
            ]
        return out

    def attention(self, width: int = 100) -> StyleAndTextTuples:
        """A line a head of one layer: where it looks from the newest token, most first."""
        texts, choice = self.session.texts, self.view.choice
        out: StyleAndTextTuples = [
            ("class:faint", f"  layer {self.layer} ([ and ] change it) looks from "),
            ("class:key", visible(texts[-1]) + "\n"),
        ]
        for head in range(self.session.runner.config.n_heads)[: self.n_candidates - 1]:
            weights = choice.attention(self.layer, head)
            line = f"  head {head:<2} "
            for i in np.argsort(-weights, kind="stable")[:8]:
                word = f" {visible(texts[i])} {percent(float(weights[i]))} "
                if len(line) + len(word) > width:
                    break
                line += word
            out.append(("", line + "\n"))
        return out

    def lens(self, width: int = 100) -> StyleAndTextTuples:
        """A line a depth: what it would say, and what it makes of the marked candidate."""
        asked = self.view.candidates[self.view.marked]
        lens = self.view.choice.logit_lens(1, token=asked.token)
        n_rows = min(self.n_candidates - 1, len(lens))
        depths = np.unique(np.linspace(0, len(lens) - 1, n_rows).round().astype(int))
        head = f"  {'depth':10}{'would say':{TOKEN_WIDTH + 9}}p of {visible(asked.text)}"
        out: StyleAndTextTuples = [("class:faint", head[:width] + "\n")]
        for depth in depths:
            row = lens[int(depth)]
            name = "embedding" if row.layer == 0 else f"layer {row.layer - 1}"
            ((_, best, p),) = row.top
            out += [
                ("class:faint", f"  {name:10}"),
                ("", f"{fitted(best, TOKEN_WIDTH)} {percent(p):>7} "),
                ("class:raw", bar(row.p, max(3, min(BAR_WIDTH, width - 57))).ljust(3)),
                ("class:drawn", f" {percent(row.p)}\n"),
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
        out: StyleAndTextTuples = [("class:faint", f"  {' → '.join(words)};  {entropy}")]
        if guess := self.view.guess:
            text = "".join(self._shown(guess))
            out += [("class:faint", ";  guessed from the text: "), ("class:raw", visible(text))]
        return out

    def status(self) -> StyleAndTextTuples:
        """Where this is, how the next token is drawn, and what has just happened."""
        session = self.session
        parts = [f"step {len(session.steps)}", f"temperature {session.params.temperature:g}"]
        if len(self.branches) > 1:
            parts.insert(0, f"branch {self.branch + 1} of {len(self.branches)}")
        if session.finished:
            parts.append("the model has ended its turn")
        out: StyleAndTextTuples = [("class:key", "  " + ", ".join(parts))]
        return [*out, ("class:forced", f"  {self.view.note}")] if self.view.note else out


def fitted(text: str, width: int) -> str:
    """Token text in exactly so many columns."""
    shown = visible(text)
    return shown[: width - 1] + "…" if len(shown) > width else shown.ljust(width)


def prompt_text(session: Session) -> str:
    """A session's prompt, with a sign for each image in place of the tokens that it takes."""
    images = set() if session.image_positions is None else set(session.image_positions.tolist())
    text = ""
    for is_image, run in itertools.groupby(range(len(session.prompt)), images.__contains__):
        ids = [session.prompt[i] for i in run]
        text += f"[image, {len(ids)} rows]" if is_image else session.tokenizer.decode(ids)
    return text
