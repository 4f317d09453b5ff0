"""A forward pass's regions: as many as are counted, and an error where there is room for fewer."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tiny_compiled import tiny_compiled
from tinyllm.compiled import RUN
from tinyllm.kernels import regions
from tinyllm.kernels.team import COUNT_BITS, N_REGIONS, REGIONS, WORD
from tinyllm.runner import Segment


def regions_used(control: np.ndarray, n_threads: int, job: int) -> set[int]:
    """The regions whose last word, how many chunks are done, belongs to this job."""
    words = control[REGIONS * WORD :][: (n_threads + 1) * control[N_REGIONS] * WORD : WORD]
    done = words.reshape(-1, n_threads + 1)[:, n_threads]
    return set(np.flatnonzero(done >> COUNT_BITS == job).tolist())


def test_the_regions_are_counted() -> None:
    """Between one row behind a long context and a batch of many rows, every region is used, but
    for those of norms of all heads and behind attention and MLP, and of experts, which a Llama
    lacks."""
    model = tiny_compiled("q8", max_seq_len=1024)
    cache = model.new_cache()
    used = set()
    for n in (600, 1, 20):
        tokens = np.arange(n, dtype=np.int32) % model.config.vocab_size
        model.forward_batch([Segment(tokens, cache)])
        used |= regions_used(model._team.control, model.threads, model._team._job)
    n_layers = model.config.n_layers
    of_experts = (regions.ROUTE, regions.CHOOSE, regions.GATHER)
    left_out = {
        1 + regions.LAYER_REGIONS * layer + part
        for layer in range(n_layers)
        for part in (regions.HEADS_NORM, regions.OUT_ADD, *of_experts, regions.DOWN_ADD)
    }
    assert used == set(range(regions.n_regions(n_layers))) - left_out


def test_too_little_room_is_an_error() -> None:
    """… and not a wait for ever."""
    model = tiny_compiled("q8", threads=1)
    model.forward([1], model.new_cache())  # leaves a batch of one row behind
    short = model._team.control.copy()
    short[N_REGIONS] -= 1
    run = RUN.bind((0, 0), (short, *model._arguments))
    with pytest.raises((IndexError, RuntimeError), match=r"more regions|the kernel run failed"):
        run(0, 2)
