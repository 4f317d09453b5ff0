"""How Python calls the kernels of `draw.py`: over a room of their own, without importing them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyllm.kernels.emit import LANES
from tinyllm.kernels.machine_code import Calls, Kernel
from tinyllm.kernels.machine_code import prepare as prepare_all

STRETCH = 1024  # logits whose exponentials have a sum of their own
BUCKETS = 2048  # of distance to the best logit, see `draw.kept`

Row = NDArray[np.float32]  # (V,)
Ids = NDArray[np.int64]
Sums = NDArray[np.float64]


class DrawRoom(NamedTuple):
    """What the kernels write down of a row of V logits; the last six on their way alone."""

    exps: Row  # (V,) exp(row - its largest)
    sums: Sums  # (ceil(V / 1024),) of each stretch of those
    lanes: Sums  # (16,)
    ids: Ids  # (V,) those that are left
    weights: Sums  # (V,) theirs
    bucket: Ids  # (V,) where each of them falls
    masses: Sums  # (2048,) of each bucket
    edge: Ids  # (V,) places in `ids` that fall into the bucket with the cut
    spare: Ids  # (V,) for sorting those


def make_room(vocab_size: int) -> DrawRoom:
    """Room for rows of this length; memory that nobody writes to takes none."""

    def ids() -> Ids:
        return np.empty(vocab_size, np.int64)

    return DrawRoom(
        exps=np.empty(vocab_size, np.float32),
        sums=np.empty(-(-vocab_size // STRETCH), np.float64),
        lanes=np.empty(LANES, np.float64),
        ids=ids(),
        weights=np.empty(vocab_size, np.float64),
        bucket=ids(),
        masses=np.empty(BUCKETS, np.float64),
        edge=ids(),
        spare=ids(),
    )


EXP_ROW = Kernel("tinyllm.kernels.draw", "exp_row")
LOG = Kernel("tinyllm.kernels.draw", "log")
DRAW = Kernel("tinyllm.kernels.draw", "draw")
UNIFORM = Kernel("tinyllm.kernels.draw", "uniform")
LARGEST = Kernel("tinyllm.kernels.draw", "largest")


class Drawing:
    """The kernels, each as a function, over one room. Not for several threads at once."""

    def __init__(self, vocab_size: int) -> None:
        prepare()
        self.room = room = make_room(vocab_size)
        row, top, seed = room.exps, np.float32(0), np.uint64(0)
        self.exp_row = EXP_ROW.bind((row, top), (room,))
        self.log = LOG.bind((0.0,), ())
        self.draw = DRAW.bind((row, top, 0, 1.0, 0.5), (room,))
        self.uniform = UNIFORM.bind((seed, seed, seed), ())
        self._largest = LARGEST.bind((row, room.ids), ())

    def largest(self, row: Row, k: int) -> Ids:
        """Places of the k largest logits, best first, lower ones first on ties; (min(k, V),)."""
        ids = np.empty(min(k, len(row)), np.int64)
        self._largest(row, ids)
        return ids


def prepare() -> None:
    """Load all of it from disk, or compile it, so that no request has to wait for that."""
    prepare_all("sampling", calls())


def calls() -> Calls:
    """The kernels, each with arguments of the types that it is called with."""
    room = make_room(1)
    row, top, seed = room.exps, np.float32(0), np.uint64(0)
    return {
        EXP_ROW: (row, top, room),
        LOG: (0.0,),
        DRAW: (row, top, 0, 1.0, 0.5, room),
        UNIFORM: (seed, seed, seed),
        LARGEST: (row, room.ids),
    }
