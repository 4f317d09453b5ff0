"""Sessions: what a client's `X-Session-ID` has been used for. Bounded in number and in age.

A session holds no text. `messages` is always the whole conversation; the prefix cache of the
engine finds what is reusable by itself.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tinyllm.api.contract.answers import SessionOut, SessionRequest, Usage
from tinyllm.api.limits import KEPT_REQUESTS, KEPT_SECONDS, MAX_SESSIONS


@dataclass
class SessionLog:
    """One session of one API key."""

    id: str
    created: float
    last_used: float
    requests: deque[SessionRequest] = field(default_factory=lambda: deque(maxlen=KEPT_REQUESTS))
    n_requests: int = 0
    total_tokens: int = 0

    def shown(self) -> SessionOut:
        return {
            "id": self.id,
            "object": "session",
            "created": self.created,
            "last_used": self.last_used,
            "requests": list(self.requests),
            "n_requests": self.n_requests,
            "total_tokens": self.total_tokens,
        }


class Sessions:
    """All sessions, those used longest ago first. Used on the event loop's thread alone.

    Args:
        max_sessions: more, and the key that has most loses the one used longest ago.
        ttl: seconds after which an unused one is forgotten.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        max_sessions: int = MAX_SESSIONS,
        ttl: float = KEPT_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._max_sessions = max_sessions
        self._ttl = ttl
        self._clock = clock
        self._sessions: OrderedDict[tuple[str, str], SessionLog] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def record(
        self, key: str, id: str, request_id: str, started: float, usage: Usage | None
    ) -> None:
        """Note a finished request; `started` is in seconds since the epoch."""
        self._forget_old()
        now = self._clock()
        session = self._sessions.pop((key, id), None) or SessionLog(id, now, now)
        session.last_used = now
        session.n_requests += 1
        session.total_tokens += usage["total_tokens"] if usage else 0
        session.requests.append(
            {"id": request_id, "created": started, "seconds": now - started, "usage": usage}
        )
        self._sessions[key, id] = session
        if len(self._sessions) > self._max_sessions:  # whoever has most gives one up
            most = Counter(owner for owner, _ in self._sessions).most_common(1)[0][0]
            del self._sessions[next(place for place in self._sessions if place[0] == most)]

    def get(self, key: str, id: str) -> SessionLog | None:
        """The session of that key, if it is remembered."""
        self._forget_old()
        return self._sessions.get((key, id))

    def delete(self, key: str, id: str) -> bool:
        """Forget a session; False if there was none."""
        return self._sessions.pop((key, id), None) is not None

    def _forget_old(self) -> None:
        oldest_kept = self._clock() - self._ttl
        while self._sessions:
            key, session = next(iter(self._sessions.items()))
            if session.last_used >= oldest_kept:
                return
            del self._sessions[key]
