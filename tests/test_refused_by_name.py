"""What is given by mistake is refused by a sentence that names it, never by numpy's or a dict's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinyllm
from tests.tiny import CONFIG, bytes_tokenizer, tiny_model
from tinyllm.decode import Session
from tinyllm.errors import HookError, ImageError
from tinyllm.inside.hooks import make_hooks
from tinyllm.inside.lab import breakages
from tinyllm.inside.points import match_names
from tinyllm.sampler import SamplingParams, sampling_params
from tinyllm.text.stand_ins import check_unicode
from tinyllm.vision.image import list_of_images

MODEL = tiny_model()


def stepped() -> Session:
    session = Session(MODEL, bytes_tokenizer(), list(b"Once"), SamplingParams(seed=1))
    session.run(2)
    return session


REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: stepped().steps[0].to_dict(attention=3), TypeError, "attention must be a layer and"),
    (lambda: stepped().steps[0].to_dict(attention=(1, 2)), TypeError, "attention must be a layer"),
    (lambda: stepped().steps[0].to_dict(attention="ab"), TypeError, "attention must be a layer"),
    (lambda: stepped().trace(attention=(9, None)), ValueError, "layer must be from 0 to 2, not 9"),
    (lambda: stepped().trace(lens="x"), ValueError, "lens must be a number from 0 up, not 'x'"),
    (lambda: stepped().trace(candidates=1.5), ValueError, "candidates must be a number from 0 up"),
    (lambda: stepped().peek().candidates("x"), ValueError, "k must be a whole number from 0 up"),  # type: ignore[arg-type]
    (lambda: match_names(CONFIG, 3), HookError, "names are a hook point's name or glob, .* not 3"),  # type: ignore[arg-type]
    (lambda: match_names(CONFIG, [3]), HookError, "names are a hook point's name or glob"),  # type: ignore[list-item]
    (lambda: make_hooks(CONFIG, 3), HookError, "hooks are a list of pairs"),  # type: ignore[arg-type]
    (lambda: breakages(3), TypeError, "broken must be a breakage, its name, .* not 3; there are"),  # type: ignore[arg-type]
    (lambda: breakages([None]), TypeError, "broken must be a breakage"),  # type: ignore[list-item]
    (lambda: list_of_images(3), ImageError, "images must be a PIL image, .* not int"),  # type: ignore[arg-type]
    (lambda: tinyllm.compare(CONFIG, 3), TypeError, "compare takes loaded models .* not int"),  # type: ignore[arg-type]
    (lambda: tinyllm.load(3), TypeError, "name_or_path must be a name or a path, not int"),  # type: ignore[arg-type]
    (lambda: tinyllm.load(threads="a"), ValueError, "threads must be a number from 1 up"),  # type: ignore[arg-type]
    (lambda: tinyllm.load(threads=0), ValueError, "threads must be a number from 1 up"),
    (lambda: check_unicode(None), TypeError, "text must be a string, not NoneType"),  # type: ignore[arg-type]
    (lambda: sampling_params({"stop": "a"}), ValueError, "no sampling parameter 'stop'; there are"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[m for _, _, m in REFUSED])
def test_it_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_numpy_numbers_are_numbers() -> None:
    session = stepped()
    assert len(session.peek().candidates(np.int64(3))) == 3
    assert session.trace(candidates=np.int32(2), lens=np.int64(1)).steps[0].lens
