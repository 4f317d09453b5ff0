"""A server for tests: the real app and engine, over a real socket and a scripted model."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import uvicorn
from numpy.typing import NDArray

from tinyllm.api.house.app import create_app
from tinyllm.api.house.budget import Budget
from tinyllm.api.house.clocks import Clocks
from tinyllm.api.house.server import Server, TimedProtocol
from tinyllm.api.house.service import Service
from tinyllm.api.house.settings import Settings
from tinyllm.api.prompt.images import ImageSource
from tinyllm.api.prompt.served import ServedModel
from tinyllm.config import ModelConfig
from tinyllm.engine.engine import Engine
from tinyllm.runner import Segment
from tinyllm.tokenizer import Tokenizer

S, O = "/api/v3/inference", "/v1"  # noqa: E741
PREFIXES = (S, O)
MODEL = "nugen-flash-instruct"
CARD = {"aliases": [MODEL], "domain_aligned": True, "reasoning": "prompted"}


@dataclass(eq=False)
class ScriptCache:
    """A cache that remembers the ids themselves."""

    capacity: int
    ids: list[int] = field(default_factory=list)
    nbytes: int = 0

    @property
    def length(self) -> int:
        return len(self.ids)

    def reserve(self, n: int) -> None:
        pass

    def truncate(self, length: int) -> None:
        del self.ids[length:]

    def fork(self, length: int | None = None, capacity: int | None = None) -> ScriptCache:
        return ScriptCache(capacity or self.capacity, self.ids[:length])

    def free(self) -> None:
        self.ids.clear()

    def keys(self, layer: int) -> Any:
        raise NotImplementedError

    values = keys


class ScriptRunner:
    """Likes the next token of `answer` best, counted from where the assistant's turn began.

    Under a mask, and past the script's end, a fixed ranking decides, with end-of-turn on top; so
    greedy output is the same for the same grammar every time. `before` sees each forward, and may
    sleep or raise.
    """

    dtype = "f32"
    fingerprint = "script0123456789"
    batch_invariant = True

    def __init__(
        self, tokenizer: Tokenizer, answer: str = "The capital of France is Paris."
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.eos = tokenizer.eos_ids[0]
        self.script: list[int] = []
        self.say(answer)
        self.before: Callable[[Sequence[Segment]], None] | None = None
        rng = np.random.default_rng(0)
        self._ranking = rng.normal(0, 1, self.vocab_size).astype(np.float32)
        for text, bonus in (('"', 6), ('"}', 9), ("}", 9), ("]", 8), ("1", 6)):
            self._ranking[tokenizer.encode(text)[0]] += bonus  # a JSON value comes to an end soon
        self._turn = tokenizer.encode("<|im_start|>assistant\n", allow_special=True)
        self._think = tokenizer.encode("<think>\n")
        self.config = ModelConfig(
            dim=8, hidden_dim=8, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=8,
            vocab_size=self.vocab_size, max_seq_len=2048, rope_theta=1e4, norm_eps=1e-5,
            tie_embeddings=True, bos_id=None, eos_ids=(self.eos,),
        )  # fmt: skip

    def like_at_most(self, bonus: float) -> None:
        """Bound what the fixed ranking gives, below the script's own tokens."""
        np.minimum(self._ranking, bonus, out=self._ranking)

    def say(self, answer: str) -> None:
        self.script = [*self.tokenizer.encode(answer), self.eos]

    def new_cache(self, capacity: int) -> ScriptCache:
        return ScriptCache(capacity)

    def forward_batch(self, segments: Sequence[Segment]) -> list[NDArray[np.float32]]:
        if self.before is not None:
            self.before(segments)
        out = []
        for segment in segments:
            cache = segment.cache
            assert isinstance(cache, ScriptCache)
            cache.ids += segment.tokens.tolist()
            rows = {"last": 1, "none": 0, "all": len(segment.tokens)}[segment.logits]
            ends = range(cache.length - rows + 1, cache.length + 1)
            logits = [self._logits(cache.ids[:end]) for end in ends]
            out.append(np.array(logits, np.float32).reshape(rows, self.vocab_size))
        return out

    def _logits(self, ids: list[int]) -> NDArray[np.float32]:
        logits = self._ranking.copy()
        n = len(self._turn)
        at = next((i for i in range(len(ids) - n, -1, -1) if ids[i : i + n] == self._turn), None)
        said = ids[at + n :] if at is not None else []
        if said[: len(self._think)] == self._think:
            said = said[len(self._think) :]
        place = len(said)
        logits[self.eos] = 9
        logits[self.script[min(place, len(self.script) - 1)]] = 12
        return logits


def scripted_model(tokenizer: Tokenizer, runner: ScriptRunner, **more: Any) -> ServedModel:
    """A served model over a script, its engine running."""
    engine = Engine(runner, **{"kv_cache_mb": 64, **more.pop("engine", {})})
    engine.start()
    values = {
        "id": "scripted", "tokenizer": tokenizer, "engine": engine,
        "vocab_size": runner.vocab_size, "fingerprint": "fp_script", "card": CARD,
        "created": 1700000000,
    }  # fmt: skip
    return ServedModel(**{**values, **more})


@dataclass
class Live:
    """A server that listens, and a client for it."""

    url: str
    service: Service
    server: Server
    http: httpx.Client
    thread: threading.Thread
    runner: ScriptRunner | None = None

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return self.http.post(path, json=body, **more)

    def chat(self, prefix: str, body: Mapping[str, Any], **more: Any) -> httpx.Response:
        """A completion request with the usual fields filled in."""
        usual = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
        return self.post(f"{prefix}/chat/completions", {**usual, **body}, **more)

    def stream(self, prefix: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """All chunks of a streamed completion; the end mark is checked."""
        response = self.chat(prefix, {**body, "stream": True})
        assert response.status_code == 200, response.text
        return events_of(response.text)

    def wait_idle(self, seconds: float = 5.0) -> None:
        """Until every engine has nothing left to do."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stats = [model.engine.stats() for model in self.service.models]
            if all(not s.running and not s.queue_length for s in stats):
                return
            time.sleep(0.01)
        raise AssertionError(f"still busy after {seconds} s: {stats}")


def events_of(text: str) -> list[dict[str, Any]]:
    """The chunks of a stream's text; the last event must be [DONE]."""
    lines = [line for line in text.split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines), text
    assert lines[-1] == "data: [DONE]", text
    return [json.loads(line[6:]) for line in lines[:-1]]


@contextlib.contextmanager
def live(
    settings: Settings,
    models: Callable[[], Sequence[ServedModel]],
    *,
    images: ImageSource | None = None,
    runner: ScriptRunner | None = None,
    clocks: Clocks = Clocks(),  # noqa: B008  # frozen
    wait: bool = True,
) -> Iterator[Live]:
    """Serve on a free port of this machine until the block ends."""
    app = create_app(settings, models, images, clocks)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="warning", access_log=False, ws="none",
        http=type("Protocol", (TimedProtocol,), {"clocks": clocks, "places": Budget(1000)}),
        timeout_graceful_shutdown=2, timeout_keep_alive=int(clocks.idle),
    )  # fmt: skip
    server = Server(config, app.state.service)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    service: Service = app.state.service
    end = time.monotonic() + 300  # kernels may have to be compiled first
    while not server.started or (wait and not service.models and service.failure is None):
        assert time.monotonic() < end and thread.is_alive(), "the server didn't start"
        time.sleep(0.005)
    if service.failure is not None and wait:
        raise service.failure
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    url = f"http://{host}:{port}"
    with httpx.Client(base_url=url, timeout=60) as client:
        try:
            yield Live(url, service, server, client, thread, runner)
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive(), "the server didn't stop"
