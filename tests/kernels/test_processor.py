"""Kinds of processor: which one a target is, what is asked for in vain, and the code for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyllm.kernels import processor
from tinyllm.kernels.processor import (
    JIT,
    KINDS,
    choose,
    instructions_of,
    possible,
    prefetch_distance,
)

LINUX, MAC = "x86_64-unknown-linux-gnu", "arm64-apple-darwin"
ARM = "aarch64-unknown-linux-gnu"
TARGETS = {
    (LINUX, "znver4"): ["avx512", "avxvnni", "avx2", "plain"],
    (LINUX, "icelake-server"): ["avx512", "avxvnni", "avx2", "plain"],
    (LINUX, "skylake-avx512"): ["avx2", "plain"],  # 512 bits, but no VNNI
    (LINUX, "alderlake"): ["avxvnni", "avx2", "plain"],
    (LINUX, "haswell"): ["avx2", "plain"],
    (LINUX, "ivybridge"): ["plain"],  # no fused multiply-add
    (LINUX, "x86-64"): ["plain"],
    (MAC, "apple-m1"): ["neon", "plain"],
    (MAC, "apple-m2"): ["neon-i8mm", "neon", "plain"],
    (ARM, "neoverse-n1"): ["neon", "plain"],
    (ARM, "neoverse-v1"): ["neon-i8mm", "neon", "plain"],
    (ARM, "cortex-a72"): ["plain"],
}


@pytest.fixture(scope="module", autouse=True)
def _every_target() -> None:
    processor.llvm.initialize_all_targets()
    processor.llvm.initialize_all_asmprinters()


@pytest.mark.parametrize("target", list(TARGETS), ids=lambda t: t[1])
def test_the_kinds_that_a_processor_can_be(target: tuple[str, str]) -> None:
    found = possible(instructions_of(*target, ""))
    assert [kind.name for kind in found] == TARGETS[target]


def test_a_wish_is_granted_or_refused() -> None:
    haswell = (LINUX, "haswell", "")
    assert choose("", haswell).name == choose("auto", haswell).name == "avx2"
    assert choose("plain", haswell).name == "plain"
    with pytest.raises(ValueError, match=r"this processor \(haswell\) is one for avx2, plain"):
        choose("avx512", haswell)
    with pytest.raises(ValueError, match="must be auto or one of avx512, avxvnni, avx2, neon-i8mm"):
        choose("on", haswell)


@pytest.mark.parametrize(
    ("triple", "name", "asked"),
    [
        ("x86_64-unknown-linux-gnu", "emeraldrapids", True),
        ("x86_64-pc-windows-msvc", "alderlake", True),
        ("x86_64-unknown-linux-gnu", "znver4", False),
        ("arm64-apple-darwin23", "apple-m1", False),
    ],
)
def test_weights_are_asked_for_ahead_where_it_helps(triple: str, name: str, asked: bool) -> None:
    assert (prefetch_distance((triple, name, "")) > 0) is asked


@pytest.mark.skipif(not JIT, reason="nothing is compiled")
def test_numbas_target_is_asked_and_not_the_host() -> None:
    """NUMBA_CPU_NAME alone, too: that ended in an LLVM error once."""
    script = "from tinyllm.kernels import processor; print(processor.NAME, processor.target()[1])"
    for features, kind in ((None, None), ("", "plain")):
        given = {"NUMBA_CPU_NAME": "x86-64"} | (
            {} if features is None else {"NUMBA_CPU_FEATURES": features}
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, **given},
            capture_output=True,
            text=True,
            check=True,
        )
        name, cpu = done.stdout.split()
        assert cpu == "x86-64"
        assert kind is None or name == kind


# --- the same bits ------------------------------------------------------------------------------

SCRIPT = """
import json, sys
from tinyllm.kernels import processor
from tinyllm.measure import verify
right = json.loads(verify.BITS.read_text())
checks = dict(verify.checks([]))
print(json.dumps([processor.NAME, [n for n, c in checks.items() if verify.run(c) != right[n]]]))
"""
RESTRICTED = {
    "avx2": ("haswell", "+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt,+sse4.2,+avx"),
    "plain": ("x86-64", "+sse2"),
}


@pytest.mark.long
@pytest.mark.skipif(not JIT, reason="nothing is compiled")
@pytest.mark.parametrize("kind", [kind.name for kind in KINDS])
def test_every_kind_that_runs_here_gives_the_same_bits(kind: str) -> None:
    """All kernels; of the kinds that this machine can be, with no more instructions than they have.

    Whole models, and the kinds of other machines, are `.ci/run kinds`.
    """
    if kind not in [k.name for k in possible(instructions_of(*processor.target()))]:
        pytest.skip("this processor isn't one for it: needs the extra hardware or emulation")
    environment = {**os.environ, processor.VARIABLE: kind}
    if kind in RESTRICTED and processor.target()[0].startswith("x86_64"):
        cpu, features = RESTRICTED[kind]
        environment |= {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == [kind, []]
