"""Responses that were kept: for `previous_response_id`, for references to items, and for GET.

Bounded by key, in number, in bytes and in age, so that nobody's are lost to somebody else's.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json

from tinyllm.api.contract.response_answers import ResponseOut

MAX_RESPONSES = 256  # of a key
MAX_BYTES = 16 << 20  # of a key, as JSON
TTL = 24 * 3600.0  # seconds


@dataclass(frozen=True)
class KeptResponse:
    """A response, with the messages of the conversation up to and with it."""

    response: ResponseOut
    messages: Sequence[dict[str, Any]]
    n_bytes: int
    kept_at: float


@dataclass
class _Shelf:
    """One key's responses, oldest first."""

    responses: OrderedDict[str, KeptResponse] = field(default_factory=OrderedDict)
    n_bytes: int = 0


class KeptResponses:
    """All kept responses. Used on the event loop's thread alone.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._shelves: dict[str, _Shelf] = {}

    def put(self, key: str, response: ResponseOut, messages: Sequence[dict[str, Any]]) -> None:
        """Keep a response; the key's oldest go when it has too many or they are too large."""
        shelf = self._shelves.setdefault(key, _Shelf())
        n_bytes = len(to_json(response)) + len(to_json(messages))
        shelf.responses[response["id"]] = KeptResponse(response, messages, n_bytes, self._clock())
        shelf.n_bytes += n_bytes
        while len(shelf.responses) > MAX_RESPONSES or shelf.n_bytes > MAX_BYTES:
            self.delete(key, next(iter(shelf.responses)))

    def get(self, key: str, id: str) -> KeptResponse | None:
        """The response of that key, if it is kept."""
        shelf = self._shelves.get(key)
        if shelf is None:
            return None
        while shelf.responses:
            oldest_id, oldest = next(iter(shelf.responses.items()))
            if self._clock() - oldest.kept_at <= TTL:
                break
            self.delete(key, oldest_id)
        return shelf.responses.get(id)

    def item(self, key: str, id: str) -> Any | None:
        """An item of a kept response of that key."""
        shelf = self._shelves.get(key)
        for kept in reversed(shelf.responses.values() if shelf is not None else ()):
            for item in kept.response["output"]:
                if item["id"] == id:
                    return item
        return None

    def delete(self, key: str, id: str) -> bool:
        """Forget a response; False if there was none."""
        shelf = self._shelves.get(key)
        gone = shelf.responses.pop(id, None) if shelf is not None else None
        if shelf is None or gone is None:
            return False
        shelf.n_bytes -= gone.n_bytes
        return True
