"""uvicorn's server, as ours: it watches the clocks, tells when it is ready, stops in good order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tinyllm.api.contract.dialect import DIALECTS, O
from tinyllm.api.contract.errors import ApiError, error_response, unavailable
from tinyllm.api.house.app import create_app
from tinyllm.api.house.budget import Budget
from tinyllm.api.house.clocks import Clocks
from tinyllm.api.house.service import Service
from tinyllm.api.house.settings import Settings
from tinyllm.api.house.sockets import AcceptTrouble, most_connections, raise_file_limit
from tinyllm.api.limits import ACCEPTED_AT_ONCE, BACKLOG, COSTLY_READ, MAX_READ, REST_AFTER_READ
from tinyllm.api.prompt.defaults import told
from tinyllm.api.prompt.served import ServedModel
from tinyllm.errors import printable

log = logging.getLogger(__name__)


def run(
    settings: Settings, load: Callable[[], Sequence[ServedModel]], sockets: list[socket.socket]
) -> int:
    """Serve what `load` returns on these sockets until told to stop; the exit status.

    Prints one line with the address when ready.
    """
    limits = {"places": Budget(most_connections(raise_file_limit()))}
    app = create_app(settings, load)
    config = uvicorn.Config(
        app,
        http=type("Protocol", (TimedProtocol,), limits),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # an address is whose share of the server it is: none may be claimed
        timeout_keep_alive=int(Clocks.idle),
        timeout_graceful_shutdown=5,
        backlog=ACCEPTED_AT_ONCE,
    )
    server = Server(config, app.state.service)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets)
    return server.status


class Server(uvicorn.Server):
    """uvicorn's server with a drain: the first signal stops new work, the second everything."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._drain: asyncio.Task[None] | None = None
        self.status = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(AcceptTrouble())
        await super().startup(sockets)
        # asyncio has one number for two things: how many connections it accepts in a row, which is
        # to be few (out of descriptors it would accept none for a second), and how many may wait.
        for listener in sockets or ():
            listener.listen(BACKLOG)
        self._announcement = asyncio.create_task(self._announce())

    async def _announce(self) -> None:
        try:
            await self._service.ready()
        except Exception as error:
            log.debug("loading failed", exc_info=error)
            print(f"tinyllm: the model can't be served: {printable(str(error))}", flush=True)
            self.status = 1
            self.should_exit = True
            return
        finally:
            # `terminal.serve` has it wait until here. What there is by now stays: looking through
            # all of it would keep the first request waiting, and others later.
            gc.freeze()
            gc.enable()
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        for model in self._service.models:
            for name, value in model.defaults.overruled().items():
                flag = f"--{name.replace('_', '-')} {value:g}"
                why = f"its generation_config.json says {model.defaults.model[name]:g}"
                print(f"tinyllm: {flag} is without effect on {model.id}: {why}", flush=True)
        about = _samplings(self._service.models)
        print(f"tinyllm: ready on http://{shown}:{port} ({about})", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First: drain. Second: stop at once."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
            return
        self.drain()
        if n := self._service.active:
            wait = self._service.settings.drain_timeout
            what = "a request that runs" if n == 1 else f"{n} requests that run"
            message = f"tinyllm: stopping; {what} may take {wait:g} s more, a second signal ends it"
            os.write(1, f"{message}\n".encode())  # a signal may come in the middle of a print

    def drain(self) -> None:
        """Take no new work, let what runs finish, then stop. From any thread."""
        self._service.draining = True
        self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._drain = asyncio.create_task(self._wait_for_requests())

    async def _wait_for_requests(self) -> None:
        """Let running requests finish, as long as --drain-timeout allows."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._service.settings.drain_timeout
        while self._service.active and loop.time() < end:
            await asyncio.sleep(0.02)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.to_thread(self._service.stop)  # what still runs ends with an error event
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()


def _samplings(models: Sequence[ServedModel]) -> str:
    """How answers are drawn where a request doesn't say, for the line that says ready."""
    shown: dict[str, str] = {}
    for model in models:
        here = {dialect.prefix: told(model.defaults.under(dialect)) for dialect in DIALECTS}
        alike = len(set(here.values())) == 1
        places = (f"{how} on {prefix}" for prefix, how in here.items())
        shown[model.id] = here[O.prefix] if alike else "; ".join(places)
    if len(set(shown.values())) == 1:
        return shown[models[0].id]
    return "; ".join(f"{id}: {how}" for id, how in shown.items())


class TimedProtocol(H11Protocol):
    """HTTP with clocks: for a head that is late, an answer nobody reads, a read that costs."""

    clocks = Clocks()
    places: Budget  # for connections, shared by address
    _address: str | None = None  # whose place it has, if it has one
    _head_clock: asyncio.TimerHandle | None = None
    _send_clock: asyncio.TimerHandle | None = None
    _rest_clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        with contextlib.suppress(AttributeError):  # other loops read in pieces of their own
            transport.max_size = MAX_READ  # type: ignore[attr-defined]
        self._wait_for_head()
        address = self.client[0] if self.client else ""
        if self.places.take(address, 1):
            self._address = address
        else:
            self.send_error(unavailable("Too many connections are open.", "connections", 5))

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clocks()
        if self._address is not None:
            self.places.give_back(self._address, 1)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_clock is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_head()  # the next request on a kept connection
        before, start = self.cycle, time.thread_time()
        super().data_received(data)
        took = time.thread_time() - start
        if took > COSTLY_READ:  # a body in chunks of a byte: the others come before its next bytes
            self._rest(took * REST_AFTER_READ)
        if self.cycle is not before and self._head_clock is not None:
            self._head_clock.cancel()
            self._head_clock = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_clock = self.loop.call_later(self.clocks.unread, self.transport.abort)

    def resume_writing(self) -> None:
        if self._send_clock is not None:
            self._send_clock.cancel()
            self._send_clock = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What isn't HTTP gets the envelope too."""
        self.send_error(ApiError(400, msg, code="bad_http"))

    def send_error(self, error: ApiError) -> None:
        """Say so, whatever the request may be, and hang up."""
        answer = error_response(error, None)
        headers = [*answer.raw_headers, (b"connection", b"close")]
        reason = HTTPStatus(answer.status_code).phrase.encode()
        try:
            head = h11.Response(status_code=answer.status_code, headers=headers, reason=reason)
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            pass  # in the middle of an answer: nothing more can be said
        self.transport.close()

    def _wait_for_head(self) -> None:
        self._head_clock = self.loop.call_later(self.clocks.head, self._give_up)

    def _give_up(self) -> None:
        self._head_clock = None
        if not self.transport.is_closing():
            self.transport.abort()

    def _rest(self, seconds: float) -> None:
        """Read nothing from this connection for so long."""
        if not self.transport.is_closing():
            self.transport.pause_reading()
            self._rest_clock = self.loop.call_later(seconds, self._read_on)

    def _read_on(self) -> None:
        self._rest_clock = None
        if not self.transport.is_closing() and not self.flow.read_paused:  # else uvicorn says when
            self.transport.resume_reading()

    def _stop_clocks(self) -> None:
        for clock in (self._head_clock, self._send_clock, self._rest_clock):
            if clock is not None:
                clock.cancel()
        self._head_clock = self._send_clock = self._rest_clock = None
