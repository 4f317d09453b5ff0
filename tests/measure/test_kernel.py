"""`python -m tinyllm.measure.kernel` finds the products of every format."""

from __future__ import annotations

import pytest

from tinyllm.kernels.formats import FORMATS
from tinyllm.kernels.processor import JIT
from tinyllm.measure.kernel import implementations


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_its_products(name: str) -> None:
    assert len(implementations(f"matmul_{name}")) == 1 + JIT
