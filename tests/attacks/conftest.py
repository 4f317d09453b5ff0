"""One server for most attacks: without keys, and small."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.load import servers


@pytest.fixture(scope="session")
def server(weights_folder: Path) -> Iterator[servers.Server]:
    options = ("--model", str(weights_folder), "--model", "smollm2-135m-vision")
    with servers.tinyllm(*options, "--kv-cache-mb", "256") as server:
        yield server
