"""The hot loops as other processors would run them: their byte products, fused sums, no calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PRODUCTS = {"neon": 4, "neon-i8mm": 4, "avxvnni": 2, "avx2": 2}  # instructions for 16 outputs


@pytest.mark.parametrize(
    ("kind", "cpu"),
    [
        ("avx2", "haswell"),
        ("neon-i8mm", "apple-m2"),
        *(
            pytest.param(*named, marks=pytest.mark.long)
            for named in [
                ("avxvnni", "alderlake"),
                ("neon", "apple-m1"),
                ("neon", "neoverse-n1"),
                ("neon-i8mm", "neoverse-v1"),
            ]
        ),
    ],
)
def test_hot_loops_multiply_bytes_and_call_nothing(kind: str, cpu: str) -> None:
    command = [sys.executable, "-m", "tests.scripts.assembly", kind, cpu, "4"]
    env = {**os.environ, "NUMBA_DISABLE_JIT": ""}  # it compiles, whatever other tests do
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=env)
    for name, row in json.loads(done.stdout).items():
        assert row["calls"] == 0, name
        assert row["fused"] > 0, name
        if "f32" not in name:  # a group of 32 weights, 4 at a time; 16 outputs; 4 tokens
            bytes_each = 1 if "a8" in name else 2
            assert row["products"] == 8 * PRODUCTS[kind] * 4 * bytes_each, name
        if cpu.startswith(("apple", "neo")):  # 32 registers: hardly anything goes to the stack
            assert row["kept_on_the_stack"] < row["instructions"] / 5, name
