"""Load an image encoder, on the path that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from tinyllm.vision.encoder import Encoder, VisionModel


def load_encoder(folder: Path, *, compiled: bool = True, threads: int | None = None) -> Encoder:
    """The encoder of a hub-layout folder, on the fast path (by that many threads) or the readable.

    Raises:
        ConfigError, WeightsError: naming the file, and the key or tensor.
    """
    if not compiled:
        return cast(Encoder, VisionModel.from_folder(folder))  # of float32 weights
    from tinyllm.vision.compiled import CompiledVisionModel  # numba is only imported when used

    return CompiledVisionModel.from_folder(folder, threads)
