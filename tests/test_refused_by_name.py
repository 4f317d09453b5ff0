"""What is given by mistake is refused by a sentence that names it, never by numpy's or a dict's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinyllm
from tests.tiny import CONFIG, bytes_tokenizer, tiny_model
from tinyllm.decode import Session
from tinyllm.errors import FetchError, HookError, ImageError, TokenizerError
from tinyllm.inside.hooks import make_hooks
from tinyllm.inside.lab import breakages, first_difference
from tinyllm.inside.points import match_names
from tinyllm.sampler import SamplingParams, sampling_params
from tinyllm.text.chat_template import ChatTemplates
from tinyllm.text.stand_ins import ControlTexts, check_unicode
from tinyllm.vision.image import list_of_images

MODEL = tiny_model()


def stepped() -> Session:
    session = Session(MODEL, bytes_tokenizer(), list(b"Once"), SamplingParams(seed=1))
    session.run(2)
    return session


TURN = {"role": "user", "content": "a"}


def written(messages: list[dict[str, Any]]) -> str:
    """Messages through a template that fails at nothing."""
    source = "{% for m in messages %}{{ m.role }}: {{ m.content + '' }};{% endfor %}"
    templates = ChatTemplates({"default": source}, {}, ControlTexts({}))
    return templates.render(messages, None, False, None, {})[0]


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
    (lambda: tinyllm.load(threads="a"), ValueError, "threads must be a whole number from 1"),  # type: ignore[arg-type]
    (lambda: tinyllm.load(threads=0), ValueError, "threads must be a whole number from 1"),
    (lambda: check_unicode(None), TypeError, "text must be a string, not NoneType"),  # type: ignore[arg-type]
    (lambda: sampling_params({"foo": "a"}), ValueError, "no sampling parameter 'foo'; there are"),
    (lambda: sampling_params({"stop": "a"}), ValueError, r"'stop': .*run\(until=…\).*; there are"),
    (lambda: sampling_params({"temprature": 0}), ValueError, "did you mean temperature.; there"),
    (lambda: sampling_params({"max_token": 3}, ["max_tokens"]), ValueError, "you mean max_tokens"),
    (lambda: stepped().set(top_q=1), ValueError, "did you mean top_p"),
    (lambda: SamplingParams(logit_bias=[1]), ValueError, "logit_bias must be a dict of token id"),  # type: ignore[arg-type]
    (lambda: Session(MODEL, bytes_tokenizer(), [1], capacity=2.5), ValueError, "capacity must be"),  # type: ignore[arg-type]
    (lambda: tinyllm.load(kv_dtype="f8"), ValueError, "kv_dtype must be f32, f16 or None"),  # type: ignore[arg-type]
    (lambda: tinyllm.load(kv_cache_mb=0), ValueError, "kv_cache_mb must be a whole number"),
    (lambda: tinyllm.load(""), FetchError, "no model is called ''. Known names: smollm2"),
    (lambda: make_hooks(CONFIG, [("hook_embed", lambda act: None)]), HookError,  # type: ignore[arg-type, misc]
     r"<lambda>\(act\) can't be .*: write def fn\(act, \*, hook\)"),
    (lambda: first_difference(3, MODEL), TypeError, "the first must be a loaded model, not int"),  # type: ignore[arg-type]
    (lambda: first_difference(MODEL, MODEL, [1] * 5, tolerance="a"), ValueError, "tolerance must"),  # type: ignore[arg-type]
    (lambda: written([{"role": "usr", "content": "a"}]), TokenizerError,
     r"messages\[0\]: role must be one of system, developer, user, assistant, tool, not 'usr'"),
    (lambda: written([{"content": "a"}]), TokenizerError, "role must be .* not None"),
    (lambda: written([TURN, {"role": "user"}]), TokenizerError, r"s\[1\]: content is missing"),
    (lambda: written([{"role": "user", "content": 3}]), TokenizerError, "a list of parts, not 3"),
    (lambda: written([{"role": "user", "content": [{"type": "text"}]}]), TokenizerError,
     'type \'text\' .* needs {"type": "text", "text": …}'),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[m for _, _, m in REFUSED])
def test_it_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_numpy_numbers_are_numbers() -> None:
    session = stepped()
    assert len(session.peek().candidates(np.int64(3))) == 3
    assert session.trace(candidates=np.int32(2), lens=np.int64(1)).steps[0].lens


def test_a_token_is_asked_for_by_id_or_text() -> None:
    choice = stepped().steps[0].choice
    assert choice.candidate("w").token == ord("w")
    assert choice.logit_lens(token="w")[-1].rank == choice.candidate("w").rank
    assert choice.causal_map(token="w").token == ord("w")


def test_what_completion_offers_is_what_there_is_to_use() -> None:
    offered = dir(tinyllm)
    assert {"LM", "load", "compare", "reopen"} <= set(offered)
    assert not {"sys", "Loader", "MOVED", "import_module"} & set(offered)


def test_a_role_that_the_template_knows_is_taken() -> None:
    source = "{% for m in messages %}{% if m.role == 'ipython' %}!{% endif %}{% endfor %}"
    templates = ChatTemplates({"default": source}, {}, ControlTexts({}))
    assert templates.render([{"role": "ipython", "content": "a"}], None, False, None, {})[0] == "!"
