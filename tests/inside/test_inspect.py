"""A saved trace on the screen and as a page that needs nothing but itself."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.tiny import bytes_tokenizer, tiny_model
from tinyllm.decode import Session
from tinyllm.inside.inspect import export_html, print_trace, trace_html
from tinyllm.inside.trace_file import TraceRecord, load_trace
from tinyllm.sampler import SamplingParams

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def trace() -> TraceRecord:
    params = SamplingParams(temperature=0.9, top_k=30, top_p=0.8, seed=5)
    session = Session(tiny_model(), bytes_tokenizer(), list(b"<b>Hi & bye</b>\n"), params)
    for _ in range(5):
        session.step()
    session.step(token="<")
    return session.trace(candidates=6, lens=3, attention=(1, None))


def printed(trace: TraceRecord, step: int | None = None) -> str:
    out = io.StringIO()
    print_trace(trace, Console(file=out, width=120), step)
    return out.getvalue()


def test_the_terminal_shows_a_line_a_step(trace: TraceRecord) -> None:
    text = printed(trace)
    assert "<b>Hi & bye</b>" in text
    assert "seed 5" in text
    lines = [line for line in text.splitlines() if re.match(r"\s+\d+  ", line)]
    assert len(lines) == 6
    assert "forced" in lines[5]


def test_the_terminal_shows_one_step_in_full(trace: TraceRecord) -> None:
    text = printed(trace, 5)
    assert "position 21" in text and "by forced" in text
    assert "raw 257 → mask 257" in text
    assert "cut by top_k" in text
    assert len(re.findall(r"layer 1, head \d", text)) == 6
    assert "replay error" in text
    with pytest.raises(ValueError, match="no step 6; it has 0, 1, 2"):
        printed(trace, 6)


def test_the_page_asks_for_nothing(trace: TraceRecord) -> None:
    page = trace_html(trace)
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\(|https?://|javascript:", page)
    assert "default-src 'none'" in page
    # What the model wrote is text, never markup.
    text = page.split("The text")[1].split("</section>")[0]
    assert "<b>" not in text and "&lt;" in text
    assert page.count('class="step"') == 6
    assert page.count('type="radio"') == 6


def test_a_step_alone_and_without_extras_makes_a_page(trace: TraceRecord, tmp_path: Path) -> None:
    session = Session(tiny_model(), bytes_tokenizer(), [65], SamplingParams(temperature=0))
    step = session.step()
    path = tmp_path / "step.json"
    import json

    path.write_text(json.dumps(step.to_dict(stages=False)))
    page = trace_html(load_trace(path))
    assert page.count('class="step"') == 1
    assert "Logit lens" not in page


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_shows_it_without_a_network(trace: TraceRecord, tmp_path: Path) -> None:
    page, picture = export_html(trace, tmp_path / "trace.html"), tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-background-networking", "--hide-scrollbars",
             "--proxy-server=127.0.0.1:9", f"--user-data-dir={tmp_path / 'profile'}"]  # fmt: skip
    shot = [f"--screenshot={picture}", "--window-size=1000,1400", page.as_uri()]
    assert BROWSER is not None
    subprocess.run([BROWSER, *flags, *shot], check=True, capture_output=True, timeout=90)
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape == (1400, 1000, 3)
    colours = np.unique(pixels.reshape(-1, 3), axis=0)
    assert len(colours) > 100  # text, bars and heat, not a blank sheet
    drawn = np.array([0x2F, 0x6F, 0xB7])  # the style sheet's blue of drawn probabilities
    assert (np.abs(pixels.astype(int) - drawn).max(-1) < 3).sum() > 500
    dom = subprocess.run(
        [BROWSER, *flags, "--dump-dom", page.as_uri()], check=True, capture_output=True, timeout=90
    ).stdout.decode()
    assert "Step 5: <b><code>&lt;</code></b> by forced" in dom
