"""A trace's tokens as the text that they are: characters whole, and an image as one picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tinyllm.inside.trace_file import ImageRecord, TraceRecord


@dataclass(frozen=True)
class Piece:
    """Tokens that show as one thing: most by themselves, those that share a character together."""

    text: str
    positions: range  # of its tokens
    image: ImageRecord | None = None


def pieces(trace: TraceRecord) -> Iterator[Piece]:
    """All of a trace's text, in order."""
    images = {image.start: image for image in trace.images or []}
    # A trace from before deltas were kept has each token's text alone.
    deltas = trace.deltas or [text.replace("\\n", "\n") for text in trace.texts]
    at = 0
    while at < len(trace.tokens):
        if at in images:
            image = images[at]
            rows = sum(image.start <= p < image.stop for p in _image_positions(trace))
            yield Piece(f"[image, {rows} rows]", range(at, image.stop), image)
            at = image.stop
            continue
        end = at
        while end < len(deltas) - 1 and not deltas[end] and trace.texts[end]:
            end += 1  # bytes of a character that isn't whole yet
        whole = "".join(deltas[at : end + 1]) or "".join(trace.texts[at : end + 1])
        yield Piece(whole, range(at, end + 1))
        at = end + 1


def columns(trace: TraceRecord, stop: int, newest: int) -> list[tuple[str, range]]:
    """What attention from before position `stop` is drawn over: (text, positions) each.

    The first one, and the newest so many; an image is one.
    """
    found: list[tuple[str, range]] = []
    for piece in pieces(trace):
        if piece.positions.start >= stop:
            break
        if piece.image is not None:
            found.append((piece.text, piece.positions))
        else:
            found += [(trace.texts[p], range(p, p + 1)) for p in piece.positions if p < stop]
    return found if len(found) <= newest + 1 else [found[0], *found[-newest:]]


def _image_positions(trace: TraceRecord) -> list[int]:
    return trace.image_rows.positions if trace.image_rows else []
