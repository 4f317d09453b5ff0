"""What an app serves: its models, and all the state that it has. Nothing of it is global."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tinyllm.api.answer.event_queue import LoopWaker
from tinyllm.api.answer.tracing import TraceWorker
from tinyllm.api.contract.errors import model_not_found, unauthorized, unavailable
from tinyllm.api.house.access_log import AccessLog
from tinyllm.api.house.body import BodyLimits, BodyReader
from tinyllm.api.house.clocks import Clocks
from tinyllm.api.house.kept_responses import KeptResponses
from tinyllm.api.house.metrics import Metrics
from tinyllm.api.house.sessions import Sessions
from tinyllm.api.house.settings import Settings
from tinyllm.api.prompt.served import EngineLike, ServedModel
from tinyllm.api.prompt.turns import FairSemaphore, WorkerPools
from tinyllm.fetch.progress import under_way
from tinyllm.kernels.being_compiled import compiling

if TYPE_CHECKING:
    from tinyllm.api.answer.looking import Looks


class Service:
    """The state behind one app.

    Args:
        settings: what the server was told.
        load: makes the models; called once, on a thread of its own.
        clocks: how long it waits for its peers.
    """

    log = logging.getLogger(__name__)

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Sequence[ServedModel]],
        clocks: Clocks = Clocks(),  # noqa: B008  # frozen
    ) -> None:
        self.settings = settings
        self.clocks = clocks
        self.models: Sequence[ServedModel] = ()
        self.failure: BaseException | None = None  # why loading failed
        self.draining = False
        self.active = 0  # completion requests being answered
        self.started = time.time()
        self.sessions = Sessions()
        self.kept_responses = KeptResponses()
        self.access_log = AccessLog(settings.access_log)
        self.metrics = Metrics(self)
        self.trace_worker = TraceWorker(settings.trace_inside)
        self.pools = WorkerPools()
        self.replays = FairSemaphore(places=4, most=2)  # of kept requests, at once
        limits = BodyLimits(settings.max_body, clocks.body)
        self.bodies = BodyReader(limits, self.pools.reading)
        self._load = load
        self._names: dict[str, ServedModel] = {}
        self._key_hashes = [hashlib.sha256(key.encode()).digest() for key in settings.api_keys()]
        self._waker: LoopWaker | None = None
        self._loading: asyncio.Task[None] | None = None

    # -- from start to stop ------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to load the models; requests are answered with 503 until that is done."""
        self._waker = LoopWaker(asyncio.get_running_loop())
        self.access_log.start()
        self._loading = asyncio.create_task(self._load_models())

    async def _load_models(self) -> None:
        try:
            models = await asyncio.to_thread(self._load)
            self._names = self._all_names(models)
            self.models = models
        except Exception as error:
            self.failure = error

    async def ready(self) -> None:
        """Wait until the models are there. Raises what went wrong with loading them."""
        if self._loading is not None:
            await self._loading
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        """Let go of everything."""
        self.trace_worker.close()
        if "looks" in vars(self):
            self.looks.close()
        self.pools.close()
        for engine in self.engines.values():
            engine.stop()
        self.access_log.stop()

    @cached_property
    def looks(self) -> Looks:
        """Where looks are made; nothing of it is imported before the first."""
        from tinyllm.api.answer.looking import Looks

        return Looks()

    @property
    def keyed(self) -> bool:
        """Whether API keys are set."""
        return bool(self._key_hashes)

    @property
    def waker(self) -> LoopWaker:
        if self._waker is None:
            raise RuntimeError("the service has not been started")
        return self._waker

    # -- models ------------------------------------------------------------------------------

    def _all_names(self, models: Sequence[ServedModel]) -> dict[str, ServedModel]:
        """Ids, then aliases: the card's, and those of --alias. Raises ValueError on a bad one."""
        names = {model.id: model for model in models}
        for model in models:
            for alias in model.card.get("aliases", ()):
                names.setdefault(str(alias), model)
        for alias in self.settings.alias:
            name, _, target = alias.partition("=")
            chosen = names.get(target) if target else models[0]
            if not name or chosen is None:
                raise ValueError(f"--alias {alias}: no model is named {target!r}")
            names[name] = chosen
        return names

    @property
    def engines(self) -> Mapping[str, EngineLike]:
        """Each engine once, by the id of the first model that runs on it."""
        firsts: dict[EngineLike, ServedModel] = {}
        for model in self.models:
            firsts.setdefault(model.engine, model)
        return {model.id: engine for engine, model in firsts.items()}

    @property
    def names(self) -> Mapping[str, ServedModel]:
        """Every id and alias."""
        return self._names

    def model(self, name: str | None) -> ServedModel:
        """The model of that id or alias; None is the default. ApiError 404 or 503."""
        self.check_ready()
        if name is None:
            return self.models[0]
        model = self._names.get(name)
        if model is None:
            raise model_not_found(name)
        return model

    # -- may it be answered? -----------------------------------------------------------------

    def check_ready(self) -> None:
        """ApiError 503 while the models are loading."""
        if not self.models:
            loading = _loading()
            message = "The model is still being loaded."
            if loading["stage"] == "compiling":
                message = (
                    f"The kernels for {loading['what']} are being compiled for this processor,"
                    " which happens once."
                )
            raise unavailable(message, "model_loading", retry_after=2, loading=loading)

    def check_accepting(self) -> None:
        """ApiError 503 while the server is shutting down."""
        if self.draining:
            message = "The server is shutting down and takes no new requests."
            raise unavailable(message, "draining", max(1.0, self.settings.drain_timeout))

    def authorize(self, header: str | None) -> str:
        """The owner that an Authorization header stands for, "" without keys. ApiError 401.

        Every key is compared, and in constant time, so that timing tells nothing of any.
        """
        if not self._key_hashes:
            return ""
        scheme, _, token = (header or "").strip().partition(" ")
        given = hashlib.sha256(token.strip().encode("latin-1", "replace")).digest()
        known = False
        for key_hash in self._key_hashes:
            known |= hmac.compare_digest(given, key_hash)
        if scheme.lower() != "bearer" or not known:
            raise unauthorized(given=bool(header))
        return given.hex()[:16]


def _loading() -> dict[str, Any]:
    """What is done now before the models are there, and how much of it remains."""
    if work := next(iter(under_way), None):
        stage, _, what = work.label.partition(" ")
        told = {"stage": stage, "what": what, "done": work.done, "total": work.total}
        return {**told, "seconds_left": work.seconds_left()}
    if names := list(compiling):
        return {"stage": "compiling", "what": ", ".join(names)}
    return {"stage": "loading", "what": "the weights"}
