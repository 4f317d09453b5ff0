"""Sessions are bounded in number and age, and nobody sees another key's."""

from __future__ import annotations

from tinyllm.api.house.sessions import Sessions
from tinyllm.api.limits import KEPT_REQUESTS


def test_bounds() -> None:
    now = [1000.0]
    sessions = Sessions(3, ttl=60, clock=lambda: now[0])
    for i in range(5):
        sessions.record("k", f"s{i}", "r", now[0], None)
        now[0] += 1
    assert len(sessions) == 3 and sessions.get("k", "s1") is None
    sessions.record("k", "s2", "again", now[0], None)  # used: now the youngest
    sessions.record("k", "new", "r", now[0], None)
    assert sessions.get("k", "s2") is not None and sessions.get("k", "s3") is None
    assert sessions.get("other", "s2") is None
    now[0] += 61
    assert sessions.get("k", "s2") is None and len(sessions) == 0


def test_one_key_doesnt_push_out_anothers() -> None:
    sessions = Sessions(4, ttl=60)
    sessions.record("quiet", "s", "r", 0.0, None)
    for i in range(20):
        sessions.record("loud", f"s{i}", "r", 0.0, None)
    assert len(sessions) == 4
    assert sessions.get("quiet", "s") is not None and sessions.get("loud", "s19") is not None


def test_requests_are_bounded_and_counted() -> None:
    sessions = Sessions(3, ttl=60)
    for i in range(KEPT_REQUESTS + 5):
        sessions.record("k", "s", f"r{i}", 0.0, None)
    session = sessions.get("k", "s")
    assert session is not None
    shown = session.shown()
    assert shown["n_requests"] == KEPT_REQUESTS + 5
    assert len(shown["requests"]) == KEPT_REQUESTS and shown["requests"][0]["id"] == "r5"
    assert sessions.delete("k", "s") and not sessions.delete("k", "s")
