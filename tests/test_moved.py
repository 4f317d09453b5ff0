"""What could be imported before modules moved into rooms still can be, under the same names."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import tinyllm

# What notebooks and the README of then imported, and what an app of one's own would.
BEFORE = {
    "trace_file": "load_trace TraceRecord",
    "trace": "Replay ActivationCache run_with_cache",
    "lab": "break_it first_difference BREAKAGES",
    "pictures": "attention lens entropy",
    "causal": "CausalMap",
    "explain": "Explanation",
    "hooks": "HookContext",
    "image": "read_image decode_image",
    "preprocess": "ImageProcessor",
    "image_prompt": "ImagePrompts",
    "vision": "VisionModel",
    "bench_ops": "time_operations",
    "kernels.machine": "peaks",
    "kernels.one_entry": "product",
    "decode": "Session Step Candidate Candidates CacheView",
    "model": "Model Segment",
    "api.app": "create_app",
    "api.settings": "Settings parse",
    "fetch": "resolve",
}


@pytest.mark.parametrize("module", BEFORE)
def test_names_are_where_they_were(module: str) -> None:
    found = importlib.import_module(f"tinyllm.{module}")
    for name in BEFORE[module].split():
        assert hasattr(found, name)


def test_a_moved_module_is_one_module() -> None:
    for before, now in tinyllm.MOVED.items():
        assert importlib.import_module(before) is importlib.import_module(now)
        assert importlib.import_module(now).__spec__.name == now  # type: ignore[union-attr]


def test_importing_the_package_loads_none_of_them() -> None:
    code = "import sys, tinyllm; print(*(m for m in sys.modules if m.startswith('tinyllm.')))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["tinyllm.errors"]
