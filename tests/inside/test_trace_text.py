"""A trace's tokens as text: shared characters whole, an image as one, and pages that stay small."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from tests.tiny import CONFIG, bytes_tokenizer, tiny_model
from tinyllm.decode import Session
from tinyllm.inside.inspect import print_trace, trace_html
from tinyllm.inside.trace_file import AttentionRecord, LensRecord, TraceRecord
from tinyllm.inside.trace_text import columns, pieces
from tinyllm.prompt import ImageSpan

PNG = b"\x89PNG no more than its first bytes"


@pytest.fixture(scope="module")
def trace() -> TraceRecord:
    """ "a东", an image of three rows, then a letter of two bytes, forced, and half another."""
    rows = np.random.default_rng(1).standard_normal((3, CONFIG.dim)).astype(np.float32)
    session = Session(
        tiny_model(), bytes_tokenizer(), [*"a东".encode(), 65, 65, 65],
        image_positions=np.array([4, 5, 6]), image_rows=rows, images=[ImageSpan(4, 7, PNG)],
    )  # fmt: skip
    for token in (*"п\n".encode(), 0xE4, 0xB8):
        session.step(token=token)
    return session.trace(candidates=3, lens=2, attention=(1, None))


def test_pieces(trace: TraceRecord) -> None:
    told = [(piece.text, list(piece.positions)) for piece in pieces(trace)]
    assert told == [
        ("a", [0]), ("东", [1, 2, 3]), ("[image, 3 rows]", [4, 5, 6]), ("п", [7, 8]), ("\n", [9]),
        (r"\xe4\xb8", [10, 11]),
    ]  # fmt: skip
    assert trace.texts[1:4] == ["东⟨e4⟩", "东⟨b8⟩", "东⟨9c⟩"]
    assert trace.texts[4:7] == ["image row 0", "image row 1", "image row 2"]


def test_attention_is_drawn_over_an_image_as_one(trace: TraceRecord) -> None:
    assert columns(trace, 8, 9) == [
        ("a", range(1)), ("东⟨e4⟩", range(1, 2)), ("东⟨b8⟩", range(2, 3)),
        ("东⟨9c⟩", range(3, 4)), ("[image, 3 rows]", range(4, 7)), ("п⟨d0⟩", range(7, 8)),
    ]  # fmt: skip
    assert [text for text, _ in columns(trace, 8, 2)] == ["a", "[image, 3 rows]", "п⟨d0⟩"]


def test_the_page_shows_them(trace: TraceRecord) -> None:
    page = trace_html(trace)
    text = page.split("The text")[1].split("</section>")[0]
    assert text.count('src="data:image/png;base64,') == page.count("<img") == 1
    assert text.count('class="parts"') == 3
    assert text.count("东</span>") == 1
    assert text.count("<label") == 5  # each step can be chosen
    assert 'dir="auto"' in text
    assert "Step 1: <b><code>п⟨bf⟩</code></b>" in page  # begun a step before
    assert "image row" not in page
    without = replace(trace, images=[replace(trace.images[0], png="")])  # type: ignore[index]
    assert "<img" not in trace_html(without)
    assert "[image, 3 rows]" in trace_html(without).split("</section>")[0]


def test_the_terminal_shows_them(trace: TraceRecord) -> None:
    out = io.StringIO()
    print_trace(trace, Console(file=out, width=120))
    print_trace(trace, Console(file=out, width=120), 0)
    assert "a东[image, 3 rows]п" in out.getvalue()
    assert "step 0, position 7: п⟨d0⟩ by forced" in out.getvalue()


def test_a_trace_from_before_deltas_were_kept(trace: TraceRecord) -> None:
    old = replace(trace, deltas=None, images=None, image_rows=None)
    assert [piece.text for piece in pieces(old)] == [t.replace("\\n", "\n") for t in trace.texts]
    assert "<img" not in trace_html(old)


def test_forty_steps_with_everything_are_a_small_page(trace: TraceRecord) -> None:
    """As much as SmolLM2-135M gives: 31 depths of 5 tokens, 9 heads over 100 positions."""
    rng = np.random.default_rng(0)
    words = ["·however", "the", " because", "Rome", "东⟨e4b8⟩", " and", '"', " Italy"]
    tokens = list(range(100))
    lens = [
        LensRecord(i, [(words[j % 8], float(p)) for j, p in enumerate(rng.dirichlet(np.ones(5)))],
                   int(rng.integers(50_000)), float(rng.random()))
        for i in range(31)
    ]  # fmt: skip
    model = trace.steps[0]
    steps = [
        replace(
            model, index=i, position=60 + i, token=tokens[60 + i],
            candidates=[
                replace(model.candidates[0], token=tokens[60 + i] if j == 0 else 1000 + j,
                        text=words[j % 8], p_raw=float(rng.random()),
                        cut_by="top_p" if j > 5 else None)
                for j in range(10)
            ],
            lens=lens,
            attention=[
                AttentionRecord(20, h, rng.dirichlet(np.full(60 + i, 0.1)).tolist())
                for h in range(9)
            ],
        )
        for i in range(40)
    ]  # fmt: skip
    many = replace(
        trace, prompt=tokens[:60], tokens=tokens, texts=[words[i % 8] for i in tokens],
        deltas=[words[i % 8] for i in tokens], steps=steps, images=None, image_rows=None,
    )  # fmt: skip
    assert 300_000 < len(trace_html(many).encode()) < 600_000
