"""What a client's script says of itself: one line of JSON a check. Standard library alone."""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
import traceback
from asyncio import run
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

URL = os.environ["OPENAI_BASE_URL"]  # where most clients look by themselves
MODEL = os.environ["TINYLLM_MODEL"]
QUESTION = "What is the capital of France?"
PNG = (  # a red square of 4 x 4 pixels
    "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAAFElEQVR4nGO8pqHBAANMDEgANwcAOx4BLuuawwkA"
    "AAAASUVORK5CYII="
)

_failed = 0


def client(name: str) -> None:
    """Say which package, in which version, this script is about."""
    _say(client=name, version=version(name))


def check(what: str) -> Callable[[Callable[[], Any]], None]:
    """Run the function below at once, waiting for it if it is async, and say what came of it."""

    def now(function: Callable[[], Any]) -> None:
        global _failed
        start = time.monotonic()
        try:
            run(function()) if inspect.iscoroutinefunction(function) else function()
        except Exception:
            _failed += 1
            _say(check=what, ok=False, why=traceback.format_exc(limit=-2)[-2000:])
        else:
            _say(check=what, ok=True, seconds=round(time.monotonic() - start, 1))

    return now


def done() -> None:
    """The exit status: whether every check passed."""
    sys.stdout.flush()
    os._exit(1 if _failed else 0)  # some clients leave threads behind that wait for the network


def _say(**line: Any) -> None:
    print(json.dumps(line), flush=True)
