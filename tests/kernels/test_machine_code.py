"""Kernels called by their entries: arguments as words, and processes that never import numba."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kernels.two_kernels import Inner, Outer
from tinyllm.kernels import cache
from tinyllm.kernels.machine_code import Kernel
from tinyllm.kernels.processor import JIT
from tinyllm.kernels.words import Words, described

WEIGH = Kernel("tests.kernels.two_kernels", "weigh")
FAIL = Kernel("tests.kernels.two_kernels", "fail")


def outer(turned: bool = True, missing: Any = None) -> Outer:
    cube = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    halves = np.arange(6, dtype=np.uint16).reshape(2, 3)
    return Outer(cube, Inner(halves, missing, 0.5), turned, np.array([7, -8]))


def test_every_type_of_argument_arrives() -> None:
    out = np.zeros(7)
    varying = (5, np.float32(0.1), np.uint64(2**63))
    for turned, missing, seen in ((True, None, (1, 3)), (False, 2.0, (2, 4))):
        o = outer(turned, missing)
        weigh = WEIGH.bind(varying, (o, out))
        i, j, k = np.indices(o.cube.shape)
        assert weigh(*varying) == (o.cube * (100 * i + 10 * j + k)).sum()
        assert out.tolist() == [5, float(np.float32(0.1)), 8, 2.5, -8, *seen]
    assert weigh(-1, np.float32(2), np.uint64(1)) > 0
    assert out[:3].tolist() == [-1, 2, 0]


def test_an_error_in_a_kernel_is_one_in_python() -> None:
    fail = FAIL.bind((1,), ())
    assert fail(1) == 1
    with pytest.raises((RuntimeError, ValueError), match=r"the kernel fail failed|too many"):
        fail(2)


# Each with an argument of another type: what this process has compiled, it doesn't compile again.
CASES = {"beside": None, "fails": 1.0, "says nothing": np.float32(1), "one core": True,
         "not started": 1}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_kernel_and_its_parts_that_stand_apart(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled by two processes; by one where the other fails, or there is one core alone."""
    o = outer(missing=CASES[case])
    kept: dict[str, bytes] = {}
    monkeypatch.setattr(cache, "save", kept.__setitem__)
    monkeypatch.setattr(cache, "load", lambda name, use: use(kept[name]) if name in kept else None)
    here: list[str] = []
    if JIT:
        from tinyllm.kernels import apart, entry

        whole = entry.compiled_part
        monkeypatch.setattr(
            entry, "compiled_part", lambda part: here.append(part.name) or whole(part)
        )
        cores = 1 if case == "one core" else 2
        monkeypatch.setattr(apart, "default_threads", lambda: (cores, "a test"))
        if case == "fails":
            monkeypatch.setattr(entry, "ANSWER", "raise SystemExit(1)")
        elif case == "not started":
            monkeypatch.setattr(sys, "executable", "/no/python")
        elif case == "says nothing":
            monkeypatch.setattr(entry, "ANSWER", "import sys; sys.stdin.buffer.read()")
    total = 7 * np.exp(2.0) + 7 * np.exp(0.0) + 1 + 7 * np.exp(0.5) + 1
    for _ in range(2):  # compiled, and as it is kept
        out = np.zeros(3)
        filled = Kernel("tests.kernels.two_kernels", "filled").bind((2,), (o, out))
        assert filled(2) == pytest.approx(total, rel=1e-14)
        assert out == pytest.approx(7 * np.exp(1.0) + np.arange(3), rel=1e-14)
        with pytest.raises((RuntimeError, ValueError), match=r"kernel filled failed|too small"):
            filled(4)
    assert here == ([] if case == "beside" or not JIT else ["fill", "fill"])


def test_types_are_told_apart() -> None:
    values = [
        1, 1.0, True, None, np.float32(1), np.uint64(1), np.zeros(2), np.zeros((2, 2)),
        np.zeros(2, np.float32), (1,), (1, 2), outer(), outer(missing=1.0),
    ]  # fmt: skip
    assert len({described(value) for value in values}) == len(values)
    assert described(np.int64(1)) == described(1)
    assert described(np.float64(1)) == described(1.0)


@pytest.mark.parametrize(
    "value", ["text", np.zeros((2, 2)).T, np.zeros(4)[::2], np.frombuffer(b"12345678"), 1j]
)
def test_what_kernels_do_not_take_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="kernels take"):
        described((1, value))


def test_arguments_of_another_type_are_refused() -> None:
    """A kernel would read them as what they aren't."""
    words = Words((np.zeros((2, 3), np.float32), 1))
    assert len(words.of((np.ones((4, 5), np.float32), 2))) == 8 * 4
    for array in (np.zeros((2, 3)), np.zeros(6, np.float32), np.zeros((3, 2), np.float32).T):
        with pytest.raises(TypeError, match="argument 0 must be a C-contiguous float32 of 2"):
            words.of((array, 1))
    with pytest.raises(struct.error):
        words.of((np.zeros((2, 3), np.float32), 1.5))


NOT_NEEDED = (
    "numba", "tinyllm.inside.replay", "tinyllm.vision.smolvlm", "httpcore2", "filelock",
    "llguidance", "tinyllm.vision.image",
)  # fmt: skip
SERVED = """
import sys
import numpy as np
import tinyllm.api.house.loading, tinyllm.api.house.server, tinyllm.vision.compiled
from tests.tiny_compiled import tiny_compiled
from tinyllm.engine.engine import Engine
from tinyllm.engine.types import Prompt, Request
from tinyllm.sampler import SamplingParams
engine = Engine(tiny_compiled("q8"))
engine.start()
for params in (SamplingParams(temperature=0.0), SamplingParams(seed=1, top_k=3, top_p=0.9)):
    prompt = Prompt(np.array([1, 2, 3], np.int32))
    asked = Request("r", prompt, max_tokens=4, params=params, top_logprobs=3)
    print(engine.run(asked, 20).answers[0].tokens)
engine.stop()
print([name for name in NOT_NEEDED if name in sys.modules])
""".replace("NOT_NEEDED", repr(NOT_NEEDED))


@pytest.mark.long
@pytest.mark.skipif(not JIT, reason="nothing is compiled")
def test_a_server_whose_kernels_are_on_disk_does_without_numba() -> None:
    """Neither its imports nor a greedy or sampled answer need it, nor what else few ask for."""
    told = []
    for _ in range(2):  # what the first compiles, the second loads
        done = subprocess.run(
            [sys.executable, "-c", SERVED],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        told.append(done.stdout.splitlines())
    assert told[0][:2] == told[1][:2]
    assert told[1][2] == "[]"
