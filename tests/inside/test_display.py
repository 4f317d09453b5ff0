"""How things look: one line as text, a plain table as HTML, never too big, never blank."""

from __future__ import annotations

import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import CONFIG, bytes_tokenizer, tiny_model
from tinyllm.decode import Session
from tinyllm.inside.points import HookPoints, hook_points
from tinyllm.inside.replay import run_with_cache
from tinyllm.sampler import SamplingParams
from tinyllm.step import Candidate, Candidates
from tinyllm.text.shown import MAX_ROWS, SPACE, bar, percent, table, visible

MODEL = tiny_model()
PROMPT = list(b"A < B & C")


@pytest.fixture(scope="module")
def session() -> Session:
    params = SamplingParams(temperature=0.7, top_k=12, top_p=0.8, seed=3)
    session = Session(MODEL, bytes_tokenizer(), PROMPT, params, name="tiny")
    for _ in range(3):
        session.step()
    return session


def shown(session: Session) -> dict[str, Any]:
    """Everything that a notebook may show."""
    step = session.steps[1]
    _, activations = run_with_cache(MODEL, PROMPT)
    return {
        "step": step,
        "choice": session.peek(),
        "candidates": step.candidates(5),
        "stages": step.stages,
        "cache": step.cache,
        "lens": step.logit_lens(3),
        "timing": step.timing(),
        "activations": activations,
        "causal": step.causal_map(),
        "hook points": HookPoints(hook_points(CONFIG)),
        "explanation": step.explain("blocks.1.attn.hook_pattern", head=1, key=2),
        "next token": session.peek(),
    }  # fmt: skip


class Plain(HTMLParser):
    """Takes notes of tags, and sees to it that each is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.open.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def parsed(html: str) -> Plain:
    plain = Plain()
    plain.feed(html)
    plain.close()
    assert not plain.open
    return plain


NAMES = ["step", "choice", "candidates", "stages", "cache", "lens", "timing", "activations",
         "causal", "hook points", "explanation"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_html_is_a_plain_table(session: Session, name: str) -> None:
    """No script, no style sheet, nothing from a network: viewers strip those."""
    html = shown(session)[name]._repr_html_()
    plain = parsed(html)
    assert plain.tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "p", "b"}
    assert plain.attributes <= {"style", "colspan"}
    assert "http" not in html
    assert len(html) < 60_000
    assert re.search(r"[A-Za-z]", plain.text)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("hook points", "explanation")])
def test_repr_is_one_short_line(session: Session, name: str) -> None:
    text = repr(shown(session)[name])
    assert "\n" not in text
    assert 10 < len(text) < 250
    assert "object at 0x" not in text


def test_reprs_say_what_there_is(session: Session) -> None:
    things = shown(session)
    step = session.steps[1]
    text = session.tokenizer.token_text(step.token)
    assert repr(step) == (
        f"Step(1: {text!r}, p {np.exp(step.logprob):.1%}, sample, position {step.position})"
    )
    assert repr(things["cache"]).startswith(f"CacheView({step.position} tokens, ")
    assert repr(things["stages"]).startswith("Stages(raw 257 → mask 257 → ")
    assert "top_k 12" in repr(things["stages"])
    assert f"ActivationCache({len(things['activations'])} arrays" in repr(things["activations"])
    assert repr(session).startswith(f"Session({len(PROMPT)} prompt tokens + 3 steps: ")
    assert repr(things["candidates"]).count("%") == 5
    assert "4 depths" in repr(things["lens"])


def test_the_numbers_in_a_table_are_the_steps(session: Session) -> None:
    step = session.steps[1]
    plain = parsed(step._repr_html_())
    assert f"{step.logprob:.3f}" in plain.text
    for candidate in step.candidates(8):
        assert percent(candidate.p_raw) in plain.text
        assert (f"cut by {candidate.cut_by}" in plain.text) >= bool(candidate.cut_by)
    assert f"{step.cache.nbytes:,}" in parsed(step.cache._repr_html_()).text


def test_markup_in_a_token_stays_text() -> None:
    nasty = "<script>alert(1)</script>&"
    candidate = Candidate(
        token=1, text=nasty, logit=1.0, p_raw=0.5, p=0.0, rank=0, cut_by="top_k"
    )  # fmt: skip
    html = Candidates([candidate], chosen=1)._repr_html_()
    assert "<script" not in html
    assert nasty in parsed(html).text


def test_a_table_is_capped_and_says_so() -> None:
    html = table(["n"], ([i] for i in range(MAX_ROWS + 7)), more="and that is that")
    assert html.count("<tr>") == MAX_ROWS + 2
    assert "7 more rows are not shown; and that is that" in html
    assert "not shown" not in table(["n"], ([i] for i in range(MAX_ROWS)))


def test_numbers_go_to_the_right_and_text_to_the_left() -> None:
    html = table(["what", "how many"], [("tokens", 49152), ("share", 0.5)], "a caption")
    left, right = '<td style="text-align: left">', '<td style="text-align: right">'
    assert f"{left}tokens</td>{right}49,152</td>" in html
    assert '<th style="text-align: right">how many</th>' in html
    assert '<caption style="caption-side: top">a caption</caption>' in html
    for number in ("1.2%", "−3.5", "<0.0001%", "1,024", "2.25 ms"):
        assert right + escape(number) in table(["x"], [(number,)])
    assert f"{left}3 tokens" in table(["x"], [("3 tokens",)])


@pytest.mark.parametrize(
    ("fraction", "drawn"),
    [(0, ""), (1, "████"), (2, "████"), (-1, ""), (0.5, "██"), (1 / 32, "▏"), (1e-9, "▏"),
     (0.28, "█▏"), (7 / 32, "▉")],
)  # fmt: skip
def test_a_bar_is_as_long_as_its_share(fraction: float, drawn: str) -> None:
    assert bar(fraction, 4) == drawn


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0, "0"),
        (1, "100.0%"),
        (0.0123, "1.2%"),
        (0.001, "0.1%"),
        (2e-5, "0.002%"),
        (3e-52, "<0.0001%"),
    ],
)
def test_a_probability_never_looks_like_none(p: float, text: str) -> None:
    assert percent(p) == text


def test_spaces_show() -> None:
    assert visible(" the cat") == "·the·cat"


def test_the_page_has_the_same_sign_for_a_space() -> None:
    page = Path(__file__).parents[2] / "tinyllm" / "api" / "web" / "dom.js"
    assert f'.replaceAll(" ", "{SPACE}")' in page.read_text(encoding="utf-8")
