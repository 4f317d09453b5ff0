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

from tinyllm.api.contract.input_items import items_of
from tinyllm.api.contract.response_answers import ResponseOut
from tinyllm.api.limits import KEPT_SECONDS, MAX_RESPONSE_BYTES, MAX_RESPONSES


@dataclass(frozen=True)
class KeptResponse:
    """A response, with the messages of the conversation up to and with it."""

    response: ResponseOut
    messages: Sequence[dict[str, Any]]
    n_bytes: int
    kept_at: float

    def input_items(self) -> list[dict[str, Any]]:
        """What it was made from, as items; the answer is the last message."""
        return items_of(self.messages[:-1], self.response["id"])


@dataclass
class _OfKey:
    """One key's responses, oldest first."""

    responses: OrderedDict[str, KeptResponse] = field(default_factory=OrderedDict)
    items: dict[str, Any] = field(default_factory=dict)  # of their outputs, by id
    n_bytes: int = 0


class KeptResponses:
    """All kept responses. Used on the event loop's thread; `item` from any.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._by_key: dict[str, _OfKey] = {}

    def put(self, key: str, response: ResponseOut, messages: Sequence[dict[str, Any]]) -> None:
        """Keep a response; the key's oldest go when it has too many or they are too large."""
        own = self._by_key.setdefault(key, _OfKey())
        n_bytes = len(to_json(response)) + len(to_json(messages))
        own.responses[response["id"]] = KeptResponse(response, messages, n_bytes, self._clock())
        own.items.update((item["id"], item) for item in response["output"])
        own.n_bytes += n_bytes
        while len(own.responses) > MAX_RESPONSES or own.n_bytes > MAX_RESPONSE_BYTES:
            self.delete(key, next(iter(own.responses)))

    def get(self, key: str, id: str) -> KeptResponse | None:
        """The response of that key, if it is kept."""
        own = self._by_key.get(key)
        if own is None:
            return None
        while own.responses:
            oldest_id, oldest = next(iter(own.responses.items()))
            if self._clock() - oldest.kept_at <= KEPT_SECONDS:
                break
            self.delete(key, oldest_id)
        return own.responses.get(id)

    def item(self, key: str, id: str) -> Any | None:
        """An item of a kept response of that key."""
        own = self._by_key.get(key)
        return None if own is None else own.items.get(id)

    def delete(self, key: str, id: str) -> bool:
        """Forget a response; False if there was none."""
        own = self._by_key.get(key)
        gone = own.responses.pop(id, None) if own is not None else None
        if own is None or gone is None:
            return False
        for item in gone.response["output"]:
            own.items.pop(item["id"], None)
        own.n_bytes -= gone.n_bytes
        return True
