"""From settings to a listening server: the port first, then the models and the web side by side.

Importing all that answers requests takes about as long as loading a model does, and half of the
latter is reading and computing, during which Python is free to import. Who connects meanwhile waits
to be told that the models are loading.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tinyllm.api.house.access_log import AccessLog
from tinyllm.api.house.settings import Settings
from tinyllm.api.house.sockets import listen
from tinyllm.errors import printable

if TYPE_CHECKING:
    from tinyllm.api.prompt.served import ServedModel

Load = Callable[[Settings], "Sequence[ServedModel]"]


def load_models(settings: Settings) -> Sequence[ServedModel]:
    """As `loading.load_models`, which takes long to import."""
    from tinyllm.api.house import loading

    return loading.load_models(settings)


def serve(settings: Settings, load: Load = load_models) -> int:
    """Serve until told to stop; the exit status. Prints one line with the address when ready."""
    try:
        AccessLog(settings.access_log).check()
        sockets = listen(settings.host, settings.port)
    except ValueError as error:
        print(f"tinyllm: {printable(str(error))}", file=sys.stderr, flush=True)
        return 1
    models = Begun(load, settings)

    from tinyllm.api.house import server

    return server.run(settings, models.wait, sockets)


class Begun:
    """Models that are being loaded, on a thread that a server which stops doesn't wait for."""

    def __init__(self, load: Load, settings: Settings) -> None:
        self._load, self._settings = load, settings
        self._models: Sequence[ServedModel] = ()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="loading", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._models = self._load(self._settings)
        except BaseException as error:
            self._failure = error

    def wait(self) -> Sequence[ServedModel]:
        """The models. Raises what went wrong with loading them."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._models
