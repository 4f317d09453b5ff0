"""The image side of a served model, loaded at the first image, or behind a first start.

Text needs none of it, so neither the start of a server nor its memory pays for an encoder that
nobody has shown a picture.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm.api.contract.errors import unavailable
from tinyllm.api.prompt.images import Pixels, VisionPrompts
from tinyllm.engine.types import Prompt
from tinyllm.vision.seen import Seen

log = logging.getLogger(__name__)


class LazyVision:
    """Makes prompts out of images once it is `ready`.

    Args:
        model: its id, for messages.
        load: makes the image side; may take long, and may fail, and is then tried again by the
            next one who asks.
    """

    def __init__(self, model: str, load: Callable[[], VisionPrompts]) -> None:
        self._model = model
        self._load = load
        self._lock = threading.Lock()
        self._future: Future[VisionPrompts] | None = None

    @property
    def loading_or_loaded(self) -> bool:
        """Whether it was loaded, or is being loaded."""
        return self._future is not None

    def start(self) -> Future[VisionPrompts]:
        """Load on a thread of its own, unless that is done or under way."""
        with self._lock:
            future = self._future
            if future is None or (future.done() and future.exception() is not None):
                future = self._future = Future()
                future.set_running_or_notify_cancel()  # from here on nobody can cancel it
                thread = threading.Thread(
                    target=self._run, args=(future,), name="tinyllm-vision", daemon=True
                )
                thread.start()
            return future

    def _run(self, future: Future[VisionPrompts]) -> None:
        try:
            future.set_result(self._load())
        except Exception as error:
            log.warning("%s can't take images: %s", self._model, error)
            future.set_exception(error)

    async def ready(self) -> None:
        """Wait until images can be taken. ApiError 503 when they can't."""
        try:
            await asyncio.shield(asyncio.wrap_future(self.start()))
        except Exception:
            message = f"The part of {self._model} that reads images can't be loaded now."
            raise unavailable(message, "vision_unavailable", retry_after=10) from None

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], images: Sequence[Pixels], **extra: Any
    ) -> Prompt:
        """As `ImagePrompts.prompt`; call it when `ready`."""
        return self.start().result().prompt(messages, images, **extra)

    def around(self, tokens: Sequence[int], images: Sequence[Pixels]) -> Prompt:
        """As `ImagePrompts.around`; call it when `ready`."""
        return self.start().result().around(tokens, images)

    def seen(self, image: Pixels) -> tuple[Seen, NDArray[np.float32]]:
        """As `ImagePrompts.seen`; call it when `ready`."""
        return self.start().result().seen(image)
