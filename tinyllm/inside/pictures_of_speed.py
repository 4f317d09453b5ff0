"""Two pictures of a forward pass: its threads over time, and its operations under the roof."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tinyllm.inside.pictures import FAINT, INK, RULE, SERIES, Picture, _blend, _Sheet, ticks

if TYPE_CHECKING:
    from tinyllm.kernels.timeline import Timeline

WAIT = (205, 60, 60)
WIDTH = 900


def threads(timeline: Timeline, layers: Sequence[int] | None = None) -> Picture:
    """A call's threads, each a band: what it computed, region by region, and where it waited.

    Gaps are what a thread does for itself between regions. The upper bands are the whole call; with
    `layers`, the lower ones are these layers alone.

    Raises:
        ValueError: nothing was noted.
    """
    if not timeline.spans:
        raise ValueError("nothing was timed: call model.forward inside `with timed(model)`")
    names = list(dict.fromkeys(span.operation for span in timeline.spans))
    colours = {name: SERIES[i % len(SERIES)] for i, name in enumerate(names)}
    n_threads = timeline.n_threads
    within = [span for span in timeline.spans if layers is not None and span.layer in layers]
    parts = [("the whole call", timeline.spans, 0, timeline.nanoseconds)]
    if within:
        start, stop = min(s.came for s in within), max(s.left for s in within)
        told = ", ".join(str(layer) for layer in layers or ())
        parts.append((f"layer {told}", within, start, stop))
    left, band, part_h = 64, 26, 40 + n_threads * 32
    sheet = _Sheet(left + WIDTH + 20, 64 + len(parts) * part_h)
    microseconds = timeline.nanoseconds / 1e3
    sheet.text(10, 8, f"one call, {microseconds:,.0f} microseconds, {n_threads} threads", size=13)
    x = 10.0
    for name, colour in [*colours.items(), ("waiting", WAIT)]:
        sheet.box(x, 33, 9, 9, colour)
        sheet.text(x + 13, 31, name, size=10)
        x += 24 + 6.5 * len(name)
    for i, (told, spans, start, stop) in enumerate(parts):
        top = 56 + i * part_h
        sheet.text(left, top, told, size=10, colour=FAINT)
        scale = WIDTH / max(1, stop - start)
        for thread in range(n_threads):
            y = top + 16 + thread * 32
            sheet.text(left - 6, y + band / 2, f"thread {thread}", size=10, anchor="rm")
            sheet.box(left, y, WIDTH, band, _blend(INK, 0.05))
        for span in spans:
            y = top + 16 + span.thread * 32
            came, did, gone = ((t - start) * scale for t in (span.came, span.did, span.left))
            sheet.box(left + came, y, did - came, band, colours[span.operation])
            sheet.box(left + did, y, gone - did, band, WAIT)
        below = top + 16 + n_threads * 32
        for mark in ticks(0, (stop - start) / 1e3):
            if mark * 1e3 <= stop - start:
                sheet.text(left + mark * 1e3 * scale, below, f"{mark:,.0f}", size=9,
                           colour=FAINT, anchor="ma")  # fmt: skip
    return Picture(sheet.image, f"{n_threads} threads over {microseconds:,.0f} µs")


def roofline(
    found: Mapping[str, Sequence[Mapping[str, Any]]], bandwidth: float, peak: float
) -> Picture:
    """Operations under the roof: what they reach, over how much they compute with each byte.

    Left of the bend memory is the limit, right of it arithmetic. Both axes are logarithmic.

    Args:
        found: call's name → its operations, as `measure.profile` gives them.
        bandwidth: bytes a second that the machine reads.
        peak: operations a second that it computes.
    """
    points = [
        (name, one) for name, all_ in found.items() for one in all_ if "operations_per_byte" in one
    ]
    low = min([0.5, *(one["operations_per_byte"] for _, one in points)])
    high = max([2 * peak / bandwidth, *(one["operations_per_byte"] for _, one in points)]) * 1.5
    floor = min([bandwidth * low, *(one["gop_per_s"] * 1e9 for _, one in points)]) / 2
    left, top, width, height = 70, 44, 560, 300
    sheet = _Sheet(left + width + 130, top + height + 44)
    sheet.text(10, 8, "operations a second, over operations a byte", size=13)

    def x(value: float) -> float:
        return left + width * math.log(value / low) / math.log(high / low)

    def y(value: float) -> float:
        return top + height * (1 - math.log(value / floor) / math.log(1.5 * peak / floor))

    for power in range(math.ceil(math.log10(floor)), math.floor(math.log10(1.5 * peak)) + 1):
        sheet.line([(left, y(10**power)), (left + width, y(10**power))], RULE, 0.5)
        sheet.text(left - 6, y(10**power), f"{10**power / 1e9:,g} G", size=10, colour=FAINT,
                   anchor="rm")  # fmt: skip
    for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1):
        sheet.text(x(10**power), top + height + 6, f"{10**power:g}", size=10, colour=FAINT,
                   anchor="ma")  # fmt: skip
    sheet.text(left + width / 2, top + height + 22, "operations a byte", colour=FAINT, anchor="ma")
    bend = peak / bandwidth
    roof = [(x(low), y(bandwidth * low)), (x(bend), y(peak)), (x(high), y(peak))]
    sheet.line(roof, INK, 1.5)
    sheet.text(x(high), y(peak) - 4, f"{peak / 1e9:,.0f} G a second", size=10, anchor="rb")
    calls = list(found)
    for name, one in points:
        colour = SERIES[calls.index(name) % len(SERIES)]
        at = (x(one["operations_per_byte"]), y(one["gop_per_s"] * 1e9))
        sheet.dot(*at, colour, 3)
        sheet.text(at[0] + 6, at[1], str(one["operation"]), size=9, colour=colour, anchor="lm")
    for i, name in enumerate(calls):
        sheet.text(left + width + 14, top + 14 * i, name, colour=SERIES[i % len(SERIES)])
    return Picture(sheet.image, f"{len(points)} operations under the roof")
