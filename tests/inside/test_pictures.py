"""Pictures: what is dark is large, what is said is true, nothing is too big, nothing is blank."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny import bytes_tokenizer, tiny_model
from tinyllm.decode import Session
from tinyllm.inside import pictures
from tinyllm.inside.pictures import BLUE, ORANGE, SCALE, Picture, printable
from tinyllm.sampler import SamplingParams

MODEL = tiny_model()
PROMPT = list(b"The cat")


@pytest.fixture(scope="module")
def session() -> Session:
    params = SamplingParams(temperature=0.8, top_k=6, seed=3)
    session = Session(MODEL, bytes_tokenizer(), PROMPT, params)
    session.run(80, beyond_end=True)
    return session


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that is written on the sheets of a test."""
    texts: list[str] = []
    for name, place in (("text", 3), ("upright", 3)):
        original = getattr(pictures._Sheet, name)

        def spy(*args: object, original: Callable[..., None] = original, place: int = place,
                **more: object) -> None:  # fmt: skip
            texts.append(str(args[place]))
            original(*args, **more)

        monkeypatch.setattr(pictures._Sheet, name, spy)
    return texts


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(picture.image.convert("RGB")).astype(int)


def area(picture: Picture, colour: tuple[int, int, int]) -> int:
    return int((pixels(picture) == colour).all(-1).sum())


def all_of_them(session: Session) -> dict[str, Picture]:
    step = session.steps[20]
    pattern = step.replay.activations["pattern", 1]
    tokens = [session.tokenizer.token_text(t) for t in step.tokens_before]
    return {
        "attention": pictures.attention(pattern, tokens),
        "lens": pictures.lens(step.logit_lens(5)),
        "entropy": pictures.entropy(session.steps[:20]),
        "cache growth": pictures.cache_growth([1, 2, 3], [10, 20, 30], [10, 20, 30]),
        "temperatures": pictures.temperatures(step.choice),
        "candidates": pictures.candidates(step.choice),
    }


NAMES = ["attention", "lens", "entropy", "cache growth", "temperatures", "candidates"]


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_png_that_a_notebook_shows(session: Session, name: str, tmp_path: Path) -> None:
    picture = all_of_them(session)[name]
    data, size = picture._repr_png_()
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    assert size["width"] == image.width // SCALE  # sharp on dense screens
    bundle, _ = picture._repr_mimebundle_()
    assert bundle["image/png"] == data
    assert bundle["text/plain"] == repr(picture)
    assert picture.save(tmp_path / "picture.png").read_bytes() == data
    assert image.width <= 4000 and image.height <= 4000
    assert len(data) < 300_000
    inked = (pixels(picture) != 255).any(-1).mean()
    assert 0.005 < inked < 0.9


def test_attention_is_darker_where_more_is_taken(written: list[str]) -> None:
    pattern = np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.1, 0.0, 0.9]]])
    picture = pictures.attention(pattern, ["a", " b", "c"], title="layer 3")
    assert "layer 3" in written
    assert written.count("·b") == 2  # down and across
    assert area(picture, BLUE) == 2 * (14 * SCALE) ** 2  # two whole cells
    some = pictures._blend(BLUE, 0.9**0.5)
    assert area(picture, some) == (14 * SCALE) ** 2


def test_attention_of_some_heads_and_of_one(written: list[str]) -> None:
    pattern = np.full((9, 4, 4), 0.25)
    pictures.attention(pattern, list("abcd"), heads=[7, 2])
    assert [t for t in written if t.startswith("head")] == ["head 7", "head 2"]
    written.clear()
    assert "1 heads" in repr(pictures.attention(pattern[0], list("abcd")))
    assert [t for t in written if t.startswith("head")] == ["head 0"]


def test_a_long_context_is_cut_and_says_so(written: list[str]) -> None:
    n = 300
    pattern = np.tril(np.ones((2, n, n))) / np.arange(1, n + 1)[:, None]
    picture = pictures.attention(pattern, ["t"] * n)
    assert "attention (the last 64 positions)" in written
    assert picture.image.width < 2500


def test_the_lens_shows_the_tokens_asked_for(session: Session, written: list[str]) -> None:
    lens = session.steps[20].logit_lens(5)
    picture = pictures.lens(lens, k=3)
    assert [t for t in written if t in ("embedding", "layer 0", "layer 1", "layer 2")] == [
        "embedding", "layer 0", "layer 1", "layer 2",
    ]  # fmt: skip
    assert f"p of {lens.target_text}" in written
    wide = sum(max(0, round((100 * row.p) * SCALE)) for row in lens) * 9 * SCALE
    assert area(picture, ORANGE) == pytest.approx(wide, rel=0.2, abs=200)


def test_entropy_shows_the_newest_and_says_so(session: Session, written: list[str]) -> None:
    assert "entropy along 64 tokens" in repr(pictures.entropy(session.steps))
    assert any("(the last 64)" in t for t in written)
    written.clear()
    pictures.entropy(session.steps[:5])
    assert not any("the last" in t for t in written)
    assert written[-5:] == [pictures.visible(s.text) for s in session.steps[:5]]
    assert "nats" in written
    pictures.entropy([])  # nothing yet is no mistake


def test_temperature_sharpens_and_flattens(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, list[float]] = {}
    original = pictures.lines

    def spy(x: list[float], series: dict[str, list[float]], **more: str) -> Picture:
        drawn.update(series)
        return original(x, series, **more)

    monkeypatch.setattr(pictures, "lines", spy)
    pictures.temperatures(session.steps[3].choice, k=4)
    best = next(iter(drawn.values()))
    assert len(drawn) == 4
    assert best == sorted(best, reverse=True)  # the likeliest loses as it gets warmer
    at_one = [0.2, 0.4, 0.6, 0.8, 1].index(1)
    for candidate, values in zip(session.steps[3].candidates(4), drawn.values(), strict=True):
        assert values[at_one] == pytest.approx(candidate.p_raw)


def test_candidates_say_what_cut_them(session: Session, written: list[str]) -> None:
    step = session.steps[3]
    pictures.candidates(step.choice, 10)
    assert written.count("cut by top_k") == 4
    kept = [c for c in step.candidates(10) if c.kept]
    for c in kept:
        assert f"{pictures.percent(c.p_raw)} → {pictures.percent(c.p)}" in written


def test_curves_over_one_point_or_of_zeros() -> None:
    for values in ([0.0], [5.0]):
        assert "flat" in repr(pictures.lines([1], {"one": values}, title="flat"))


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.837, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 3.4, [0, 1, 2, 3, 4]),
        (0.2, 2, [0, 0.5, 1, 1.5, 2]),
        (1, 8, [0, 2, 4, 6, 8]),
        (0, 187, [0, 50, 100, 150, 200]),
        (64, 512, [0, 100, 200, 300, 400, 500, 600]),
        (0, 3e-5, [0, 1e-5, 2e-5, 3e-5]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_round(low: float, high: float, marks: list[float]) -> None:
    found = pictures.ticks(low, high)
    assert found[0] <= low and found[-1] >= high
    assert found == pytest.approx(marks)


def test_curves_have_round_numbers_and_say_what_they_are(written: list[str]) -> None:
    pictures.lines([64, 512], {"one": [3.0, 187.4]}, title="t", x_label="tokens", y_label="ms")
    assert written == [
        "t", "0", "50", "100", "150", "200", "ms", "100", "200", "300", "400", "500", "tokens",
        "one",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="series 'one' has 1 values, but x has 2"):
        pictures.lines([1, 2], {"one": [3]}, title="t")


def test_labels_that_dont_match_are_refused() -> None:
    pattern = np.full((2, 3, 3), 1 / 3)
    with pytest.raises(ValueError, match="looks at 3 positions, but there are 2 tokens"):
        pictures.attention(pattern, ["a", "b"])
    with pytest.raises(ValueError, match="head must be from 0 to 1, not 2"):
        pictures.attention(pattern, ["a", "b", "c"], heads=[2])
    with pytest.raises(ValueError, match="1 pictures, but 2 labels"):
        pictures.strip([pattern[0]], ["a", "b"])


def test_a_strip_has_a_label_over_each(written: list[str]) -> None:
    heat = np.array([[0.0, 1.0], [0.5, 0.0]])
    picture = pictures.strip([heat, Image.new("RGB", (9, 9), ORANGE)], ["heat", "orange"], side=50)
    assert written == ["", "heat", "orange"]
    assert area(picture, BLUE) == (25 * SCALE) ** 2  # the largest number's quarter
    assert area(picture, ORANGE) == (50 * SCALE) ** 2


def test_letters_that_the_font_has_not_are_named() -> None:
    assert printable("plain ASCII: {}~") == "plain ASCII: {}~"
    assert printable("日") == "[65E5]"
    assert printable("·→🙂") == "·>[1F642]"
