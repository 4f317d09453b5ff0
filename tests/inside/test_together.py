"""Tokens of several texts in one pass: each has the bits that it has alone."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden.families import load_goldens, tokens, write_checkpoint
from tests.inside.test_many_rows import WIDE, wide_model
from tests.tiny import tiny_model
from tinyllm.config import ModelConfig
from tinyllm.inside import together
from tinyllm.inside.hooks import Conditions, HookTap, make_hooks
from tinyllm.inside.many_rows import RowByRow
from tinyllm.inside.replay import Replay, replay_token
from tinyllm.inside.together import Pass, Together
from tinyllm.kv_cache import KVCache
from tinyllm.model import Model
from tinyllm.weights import load_weights

GOLDENS = load_goldens()
LENGTHS = [7, 1, 12, 30, 3]


def text(model: Model, length: int) -> KVCache:
    """A cache of so many tokens, with room for one more."""
    cache = model.new_cache(length + 1, context=40)
    model.forward(tokens(length), cache, logits="none")
    return cache


def same(a: Replay, b: Replay) -> None:
    assert a.position == b.position and list(a.activations) == list(b.activations)
    for name, array in a.activations.items():
        np.testing.assert_array_equal(array, b.activations[name], err_msg=name)
    for one, other in ((a.logits, b.logits), (a.key, b.key), (a.value, b.value)):
        np.testing.assert_array_equal(one, other)


def met(model: Model, caches: list[KVCache], place: AbstractContextManager[Any]) -> list[Replay]:
    """Replays of token 5 behind each, asked for by as many threads."""
    meeting = Together(model, place)
    found: dict[int, Replay] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: meeting.replay(5, caches[i])}))
        for i in range(len(caches))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[i] for i in range(len(caches))]


def check(model: Model) -> None:
    alone = [replay_token(RowByRow(model), 5, text(model, length)) for length in LENGTHS]
    caches = [text(model, length) for length in LENGTHS]
    for mine, own, cache, length in zip(
        met(model, caches, nullcontext()), alone, caches, LENGTHS, strict=True
    ):
        same(mine, own)
        assert cache.length == length + 1


def test_compiled_products() -> None:
    check(wide_model())


@pytest.mark.parametrize("name", GOLDENS)
def test_every_family(name: str, tmp_path: Path) -> None:
    write_checkpoint(GOLDENS[name], tmp_path)
    config = ModelConfig.from_folder(tmp_path)
    check(Model(config, load_weights(tmp_path, config)))


def test_who_waits_shares_the_next_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    run = Pass.run

    class Counted(Pass):
        def run(self, tokens: Any) -> Any:
            sizes.append(len(tokens))
            return run(self, tokens)

    monkeypatch.setattr(together, "Pass", Counted)
    monkeypatch.setattr(together, "MOST", 3)
    model, here = tiny_model(), threading.Event()

    class All:
        """A place that is free once everybody waits."""

        def __enter__(self) -> None:
            assert here.wait(10)

        def __exit__(self, *_: object) -> None:
            pass

    meeting = Together(model, All())
    threads = [
        threading.Thread(target=meeting.replay, args=(5, text(model, length))) for length in LENGTHS
    ]
    for thread in threads:
        thread.start()
    while meeting.n_waiting < len(LENGTHS):
        assert any(thread.is_alive() for thread in threads)
    here.set()
    for thread in threads:
        thread.join()
    assert sizes == [3, 2]


def test_a_tap_changes_its_own_text_alone() -> None:
    model = wide_model()
    hooks = make_hooks(WIDE, [("blocks.1.attn.hook_z", lambda act, *, hook: 0 * act)])
    tapped = Conditions(hooks=tuple(hooks))
    caches = [text(model, length) for length in LENGTHS]
    taps = [HookTap(model, caches[0], tapped, 0), *[no_tap] * (len(caches) - 1)]
    logits = Pass(model, caches, taps).run([5] * len(caches))
    for i, length in enumerate(LENGTHS):
        under = tapped if i == 0 else Conditions()
        alone = replay_token(RowByRow(model), 5, text(model, length), under=under)
        np.testing.assert_array_equal(logits[i], alone.logits)


def test_a_fault_reaches_all_who_shared_the_pass() -> None:
    model = tiny_model()
    meeting = Together(model, nullcontext())
    with pytest.raises(ValueError, match="999"):
        meeting.replay(999, text(model, 3))
    same(meeting.replay(5, text(model, 3)), replay_token(RowByRow(model), 5, text(model, 3)))


def no_tap(name: str, array: Any) -> Any:
    del name
    return array
