"""BLAS threads: one while the readable path computes, the user's own number before and after."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from tests.tiny import CONFIG, tiny_model
from tinyllm.inside.hooks import Conditions, HookTap, make_hooks
from tinyllm.kernels.blas import few_threads


def threads() -> set[int]:
    """Of each BLAS in this process."""
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_a_forward_has_one_thread_and_leaves_the_users_number() -> None:
    model, during = tiny_model(), []
    environment = dict(os.environ)

    def look(act: Any, *, hook: Any) -> None:
        during.append(threads())

    with threadpool_limits(3, user_api="blas"):
        cache = model.new_cache(8)
        hooks = make_hooks(CONFIG, [("blocks.*.hook_attn_out", look)])
        model.forward([1, 2, 3], cache, tap=HookTap(model, cache, Conditions(tuple(hooks)), 3))
        assert during == [{1}] * CONFIG.n_layers
        assert threads() == {3}
        model.unembed(np.zeros((1, CONFIG.dim), np.float32))
        with pytest.raises(ValueError, match="vocabulary"):
            model.forward([9999], cache)
        assert threads() == {3}
    assert dict(os.environ) == environment


def test_blocks_in_one_another_and_in_several_threads() -> None:
    """The number stays as it is until the last one is over; then the user's own comes back."""
    before = threads()
    inside, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def other() -> None:
        with few_threads():
            inside.set()
            go_on.wait()
        done.set()

    worker = threading.Thread(target=other)
    with few_threads(), few_threads():
        assert threads() == {1}
        worker.start()
        inside.wait()
    assert threads() == {1}  # the other block isn't over yet
    go_on.set()
    worker.join()
    assert done.is_set() and threads() == before
    with threadpool_limits(3, user_api="blas"):
        with few_threads():
            assert threads() == {1}
        assert threads() == {3}
    assert threads() == before
