"""The load scripts in short, and faults over real sockets with a healthy client beside each.

A whole server with the real weights. For figures worth quoting run `python -m tests.load` and its
neighbours by themselves; see tests/load/__init__.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.load import faults, servers
from tests.load.__main__ import load, summary, table
from tests.load.client import Call, fetch, stream_chat
from tests.load.soak import metrics, soak
from tests.load.stall import over_http
from tests.load.workload import MIXES


@pytest.fixture(scope="module")
def server(weights_folder: Path) -> Iterator[servers.Server]:
    with servers.tinyllm("--model", str(weights_folder)) as server:
        yield server


def link_or_copy(source: str, target: str) -> None:
    """A link leaves the bytes in place when the folder goes, as a replaced file would be."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


async def settle(port: int) -> dict[str, float]:
    """The gauges, once nothing runs any more (or after ten seconds)."""
    for _ in range(100):
        seen = await metrics(port)
        if not seen["tinyllm_requests_running"] and not seen["tinyllm_queue_length"]:
            break
        await asyncio.sleep(0.1)
    return seen


@pytest.mark.long
def test_a_short_load(server: servers.Server) -> None:
    figures = asyncio.run(load("tinyllm", server.port, 4, 4.0, MIXES["chat"], 0, 2))
    assert figures.failed == figures.refused == 0
    assert figures.requests >= 4 and figures.tokens_per_s > 0
    assert f"| tinyllm | 4 | {figures.tokens_per_s:,.0f} |" in table([summary([figures])])


@pytest.mark.long
def test_a_short_soak(server: servers.Server) -> None:
    tally = asyncio.run(soak(server, 8, 8.0, seed=1, share=0.4))
    assert tally.faults == []
    kinds = {name.split()[0] for name in tally.statuses}
    assert {"streamed", "whole"} <= kinds and len(kinds) > 6


@pytest.mark.long
def test_a_long_prompt_beside_a_stream(server: servers.Server) -> None:
    stall = asyncio.run(over_http(server.port, 1, 4000, seed=5))
    assert stall.prompt_tokens > 3900
    assert len(stall.beside) > 20  # the stream went on meanwhile: it wasn't held up as a whole
    assert "usual steps" in stall.text()


def test_disconnects_free_the_slots_in_prefill_too(server: servers.Server) -> None:
    async def flood() -> dict[str, float]:
        long = {
            "model": "smollm2-135m-instruct",
            "messages": [{"role": "user", "content": "word " * 6000}],
            "max_tokens": 1000,
        }
        short = {**long, "messages": [{"role": "user", "content": "Hi"}]}
        calls = [stream_chat(server.port, long, hang_up_after=0) for _ in range(20)]
        calls += [stream_chat(server.port, short, hang_up_after=2) for _ in range(20)]
        await asyncio.gather(*calls)
        return await settle(server.port)

    left = asyncio.run(flood())
    assert left["tinyllm_requests_running"] == left["tinyllm_queue_length"] == 0
    asyncio.run(faults.healthy(server.port))


def test_a_client_that_never_reads(server: servers.Server) -> None:
    async def beside() -> dict[str, float]:
        streams = [await faults.slow_reader(server.port, 3000) for _ in range(4)]
        await asyncio.sleep(0.5)
        await faults.healthy(server.port)
        for _, writer in streams:
            writer.close()
        return await settle(server.port)

    assert asyncio.run(beside())["tinyllm_requests_running"] == 0


def test_a_thousand_idle_connections(server: servers.Server) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))

    async def beside() -> None:
        async with faults.idle_connections(server.port, 1000):
            await faults.healthy(server.port)

    asyncio.run(beside())


@pytest.mark.long
def test_killed_and_started_again(weights_folder: Path) -> None:
    """State is kept in memory alone: it is gone, whole, and the port and the weights are fine."""
    port = servers.free_port()
    options = ("--model", str(weights_folder))
    with servers.tinyllm(*options, port=port) as server:

        async def cut_off() -> Call:
            call = Call()
            body = json.loads(faults.question(max_tokens=2000, logit_bias={"2": -100}))
            task = asyncio.create_task(stream_chat(port, body, call=call))
            while not call.arrivals:
                await asyncio.sleep(0.01)
            server.process.send_signal(signal.SIGKILL)
            await asyncio.wait([task], timeout=10)
            assert task.done()
            return call

        assert asyncio.run(cut_off()).finish_reason is None
    with servers.tinyllm(*options, port=port):
        asyncio.run(faults.healthy(port))


@pytest.mark.long
def test_weights_removed_and_disk_full_while_serving(weights_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / weights_folder.name
    shutil.copytree(weights_folder, folder, copy_function=link_or_copy)
    with servers.tinyllm("--model", str(folder), "--access-log", "/dev/full") as server:
        asyncio.run(faults.healthy(server.port))
        shutil.rmtree(folder)
        asyncio.run(faults.healthy(server.port))
        assert asyncio.run(metrics(server.port))["tinyllm_access_log_dropped_total"] > 0


@pytest.mark.long
def test_sigterm_in_the_middle_of_sixteen_streams(weights_folder: Path) -> None:
    with servers.tinyllm("--model", str(weights_folder)) as server:

        async def sixteen() -> tuple[list[Call], int]:
            body = json.loads(faults.question(max_tokens=60, logit_bias={"2": -100}))
            calls = [Call() for _ in range(16)]
            tasks = [
                asyncio.create_task(stream_chat(server.port, body, call=call)) for call in calls
            ]
            while not all(call.arrivals for call in calls):
                await asyncio.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.05)
            status = 0
            try:
                status, headers, _ = await fetch(
                    server.port, "POST", faults.PATH, faults.question()
                )
                assert "retry-after" in headers
            except ConnectionError:  # it has stopped listening already
                pass
            await asyncio.gather(*tasks)
            return calls, status

        calls, status = asyncio.run(sixteen())
        assert [call.completion_tokens for call in calls] == [60] * 16
        assert {call.finish_reason for call in calls} == {"length"}
        assert status in (0, 503)
        assert server.process.wait(30) == 0


def test_a_second_sigterm_stops_at_once(weights_folder: Path) -> None:
    with servers.tinyllm("--model", str(weights_folder)) as server:

        async def long_stream() -> float:
            body = json.loads(faults.question(max_tokens=8000, logit_bias={"2": -100}))
            call = Call()
            task = asyncio.create_task(stream_chat(server.port, body, call=call))
            while not call.arrivals:
                await asyncio.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            assert not task.done()  # it is let finish
            server.process.send_signal(signal.SIGTERM)
            begin = time.monotonic()
            await asyncio.wait([task], timeout=20)
            return time.monotonic() - begin

        assert asyncio.run(long_stream()) < 15
        server.process.wait(20)
