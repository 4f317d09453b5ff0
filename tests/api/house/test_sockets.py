"""The listening sockets, and what is said where there can be none."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket

import pytest

from tinyllm.api.house.serve import serve
from tinyllm.api.house.settings import Settings
from tinyllm.api.house.sockets import AcceptTrouble, listen, most_connections
from tinyllm.api.limits import SPARE_DESCRIPTORS


def never(settings: Settings) -> list:  # type: ignore[type-arg]
    raise AssertionError("nothing is loaded for a server that can't listen")


def test_a_free_port_is_one_for_all_addresses() -> None:
    sockets = listen("localhost", 0)
    assert len({listener.getsockname()[1] for listener in sockets}) == 1
    for listener in sockets:
        listener.close()


def test_a_port_in_use_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve(Settings(port=port), never) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(port) in said and "another program" in said


@pytest.mark.parametrize("path", ["/nonexistent/log", "/", "a\0b", "/proc/\x1b[2J/log"])
def test_a_bad_access_log_is_one_sentence(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(Settings(port=0, access_log=path), never) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--access-log" in said and "\x1b" not in said


def test_a_host_that_is_none() -> None:
    with pytest.raises(ValueError, match="no such address"):
        listen("no-such-host.invalid", 0)


def test_out_of_descriptors_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    trouble = AcceptTrouble()
    with caplog.at_level(logging.WARNING):
        for _ in range(2048):
            trouble(loop, {"exception": OSError(errno.EMFILE, "Too many open files")})
    loop.close()
    assert [record.getMessage() for record in caplog.records] == [
        "new connections wait: Too many open files"
    ]


def test_some_descriptors_are_left_for_all_else() -> None:
    assert most_connections(1024) == 1024 - SPARE_DESCRIPTORS
    assert most_connections(40) == 20
