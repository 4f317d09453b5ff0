"""Looks at tokens: a few at once for the whole app, and callers take turns.

Each has a thread, and is computed by the readable model: what comes before its token, unless that
is kept; the token's forward, which looks that wait at the same time share (`together.py`); and what
is read off it. There are many threads, so that looks meet, but few compute at once: those hold a
place, of one kind for filling texts and of another for the rest. They have the priority of the
threads that decode: with the low one that traces have, the system's scheduler owes them about a
tenth of a core beside many streams, which is too little for a class that looks.

A look far into a text, or with a broken part, may take minutes. Such never have all of the places:
one is for the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import numpy as np

from tinyllm.api.contract.errors import ApiError, invalid, sentence
from tinyllm.api.contract.look import LookImage, LookNumber, LookRequest
from tinyllm.api.limits import LONG_LOOK, LOOKS_AT_ONCE, LOOKS_TAKEN, MAX_LOOK_ROWS
from tinyllm.api.prompt.chat import Picture, around_pictures
from tinyllm.api.prompt.served import ServedModel
from tinyllm.api.prompt.turns import FairSemaphore, Workers
from tinyllm.decode import Session
from tinyllm.errors import HookError
from tinyllm.inside.breakage import Breakage
from tinyllm.inside.broken_texts import BrokenTexts
from tinyllm.inside.causal import effects_of_zeroing
from tinyllm.inside.hooks import Conditions
from tinyllm.inside.lab import break_it
from tinyllm.inside.look import MAX_TERMS, Want, look, packed
from tinyllm.inside.many_rows import RowByRow
from tinyllm.inside.prefixes import Prefixes
from tinyllm.inside.replay import Replay, replay_token
from tinyllm.inside.together import Together
from tinyllm.kv_cache import KVCache
from tinyllm.model import Model
from tinyllm.prompt import Prompt
from tinyllm.sampler import SamplingParams
from tinyllm.step import Step
from tinyllm.tokenizer import Tokenizer
from tinyllm.vision.seen import nearest_words


class Gone(Exception):
    """Nobody waits for the look any more."""


class Texts:
    """One readable model's texts that were looked at, whole and broken."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        filling: threading.Semaphore,
        place: threading.Semaphore,
    ) -> None:
        self.model = RowByRow(model)
        self.whole = Prefixes(model, tokenizer.special_tokens.values(), place=filling)
        self.together = Together(self.model, place)
        self.broken = BrokenTexts(model)
        self._breaking = threading.Lock()

    @contextmanager
    def before(
        self,
        text: Prompt,
        n_prompt: int,
        length: int,
        breakage: Breakage | None,
        go_on: Callable[[], None],
    ) -> Iterator[KVCache]:
        """A cache of the first `length` tokens, with room for one more, inside a `with` block."""
        if breakage is None:
            with self.whole.before(text, length, go_on) as cache:
                yield cache
        else:
            with (
                self._breaking,
                self.broken.before(breakage, text, n_prompt, length, go_on) as cache,
            ):
                yield cache


class Looks:
    """Where looks are made, for one app: callers in turn."""

    def __init__(self) -> None:
        self._workers = Workers("look", LOOKS_TAKEN)
        # Never held while another is waited for. A filled text isn't held up by others' filling.
        self._filling = threading.Semaphore(LOOKS_AT_ONCE)
        self._place = threading.Semaphore(LOOKS_AT_ONCE)
        self._long = FairSemaphore(LOOKS_AT_ONCE - 1)  # places for looks that may take long
        self._texts: dict[Model, Texts] = {}
        self._loading = threading.Lock()

    def close(self) -> None:
        """Take no more looks; from any thread."""
        self._workers.close()

    async def answer(
        self, asked: LookRequest, pictures: Sequence[Picture], model: ServedModel, share: str
    ) -> dict[str, Any]:
        """The look, when its turn has come; cancel it, and what runs stops soon. ApiError."""
        over = threading.Event()
        try:
            async with AsyncExitStack() as held:
                if asked.break_ is not None or asked.position > LONG_LOOK:
                    await held.enter_async_context(self._long.turn(share))
                return await self._workers.run(share, self._look, asked, pictures, model, over)
        finally:
            over.set()

    def _look(
        self,
        asked: LookRequest,
        pictures: Sequence[Picture],
        served: ServedModel,
        over: threading.Event,
    ) -> dict[str, Any]:
        """The look itself, on one of the threads."""
        if served.readable is None:
            raise ApiError(400, f"{served.id} can't be looked into.", code="not_supported")
        with self._loading:
            model = served.readable()
            if model not in self._texts:
                self._texts[model] = Texts(model, served.tokenizer, self._filling, self._place)
            texts = self._texts[model]
        model = texts.model
        limit, position = model.config.max_seq_len, asked.position
        if position >= limit:
            raise invalid(f"The context holds {limit} tokens.", "position")
        known = model.config.vocab_size
        for i, token in enumerate(asked.tokens):
            if token >= known:
                raise invalid(f"The vocabulary has {known} tokens.", "tokens", i)
        for i, pair in enumerate(asked.want.drawn or ()):
            if pair.token >= known:
                raise invalid(f"The vocabulary has {known} tokens.", "want", "drawn", i, "token")

        def go_on() -> None:
            if over.is_set():
                raise Gone

        tokens = asked.tokens
        text = around_pictures(Prompt(np.array(tokens, np.int32)), pictures, served)
        before = text.first(position)
        n_prompt = min(asked.n_prompt or position, position)
        breakage = None if asked.break_ is None else break_it(asked.break_)
        broken = () if breakage is None else (breakage,)
        _, row = before.images_between(position - 1, position)
        if breakage is not None and (why := breakage.lacking(model.config)):
            raise invalid(f"{breakage.name} can't be broken in this model: {why}.", "break")
        try:
            with texts.before(text, n_prompt, position - 1, breakage, go_on) as cache:
                # The one forward that every view is read off.
                if broken or row is not None or asked.want.timing:
                    with self._place:
                        replay = replay_token(
                            model, tokens[position - 1], cache, under=Conditions(broken=broken),
                            n_prompt=n_prompt, image_row=None if row is None else row[0],
                        )  # fmt: skip
                else:
                    replay = texts.together.replay(tokens[position - 1], cache)
                session = Session(
                    model, served.tokenizer, tokens[:n_prompt], _params(asked),
                    said=tokens[n_prompt:position], cache=cache, logits=replay.logits,
                    image_positions=before.image_positions, image_rows=before.image_rows,
                    name=served.id, broken=broken,
                )  # fmt: skip
                with self._place:
                    out = _views(session, replay, asked, go_on)
        except (HookError, ValueError) as error:
            raise invalid(sentence(str(error)), "want") from None
        if asked.want.image is not None:
            with self._place:
                out["image"] = _image(asked.want.image, text, pictures, served, model)
        if breakage is not None:
            out["broken"] = breakage.name
        shape = {"n_layers": model.config.n_layers, "n_heads": model.config.n_heads}
        return {"object": "look", "model": asked.model, "computed": "f32", **shape, **out}


def _views(
    session: Session, replay: Replay, asked: LookRequest, go_on: Callable[[], None]
) -> dict[str, Any]:
    """All that was asked for of the token's step, read off the forward before it."""
    step = session.step(asked.tokens[asked.position], beyond_end=True)
    step.rerun.replay = replay
    out = look(step, _want(asked))
    if asked.want.causal:
        parts = [(p.part, p.layer, p.head) for p in asked.want.causal]
        effects = effects_of_zeroing(step.rerun, step.token, parts, go_on)
        out["causal"] = [effect._asdict() for effect in effects]
    if asked.want.explain is not None:
        out["explain"] = _explained(step, asked.want.explain)
    return out


def _params(asked: LookRequest) -> SamplingParams:
    return SamplingParams(
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        top_k=asked.top_k or 0,
        seed=0 if asked.seed is None else asked.seed,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
    )


def _want(asked: LookRequest) -> Want:
    want = asked.want
    attention = want.attention and (want.attention.layer, want.attention.heads)
    return Want(
        candidates=want.candidates or 0,
        logits=bool(want.logits),
        attention=attention or None,
        lens=want.lens or 0,
        activations=want.activations or "",
        timing=bool(want.timing),
        cache=bool(want.cache),
        drawn={pair.token: pair.logit for pair in want.drawn or ()},
    )


def _explained(step: Step, number: LookNumber) -> dict[str, Any]:
    """One number of the newest position before the token, from the forward that was looked at."""
    step.rerun.dtype = None  # no kernel is compiled for a question
    found = step.explain(number.name, head=number.head, key=number.key, dim=number.dim)
    names = ("name", "where", "token", "formula", "filled", "source", "line", "tensor")
    out: dict[str, Any] = {name: getattr(found, name) for name in names}
    for name in ("value", "recomputed"):
        out[name] = _finite(getattr(found, name))
    terms = [
        {"label": t.label, "factors": t.factors, "value": _finite(t.value), "opens": dict(t.opens)}
        for t in found.terms
    ]
    return {**out, "terms": terms[:MAX_TERMS], "n_terms": len(terms)}


def _image(
    wanted: LookImage, text: Prompt, pictures: Sequence[Picture], served: ServedModel, model: Model
) -> dict[str, Any]:
    """An image's patches; and of its rows, from the first one asked for, where each stands, which
    part of the image it stands for, how long it is, and which words it is nearest to."""
    assert served.vision is not None  # or its pictures would have been refused
    seen, rows = served.vision.seen(pictures[wanted.index].image)
    span = text.images[wanted.index]
    assert text.image_positions is not None
    positions = text.image_positions[
        (text.image_positions >= span.start) & (text.image_positions < span.stop)
    ]
    some = slice(wanted.start, wanted.start + MAX_LOOK_ROWS)
    shown = rows[some]
    ids, likeness = nearest_words(shown, model.weights["model.embed_tokens.weight"])
    lengths = np.linalg.norm(shown[:, : model.config.dim], axis=1)  # the rest is for later layers
    word = served.tokenizer.token_text
    out: dict[str, Any] = {}
    if wanted.values:
        out["values"] = packed(shown.astype(np.float32))
    if wanted.places:
        out["positions"] = packed(positions.astype(np.int32))
        out["places"] = packed(np.array(seen.places, np.float32))
    return {
        **out,
        "index": wanted.index, "start": span.start, "stop": span.stop,
        "parts": seen.parts, "patches": seen.patches,
        "caption": seen.caption,
        "names": [{"part": part, "best": [[n, p] for n, p in best]} for part, best in seen.names],
        "looked": [{"slot": slot, "weights": packed(array)} for slot, array in seen.looked],
        "n_rows": len(rows), "first": wanted.start,
        "rows": [
            {"position": int(positions[wanted.start + i]), "place": seen.places[wanted.start + i],
             "length": float(lengths[i]),
             "nearest": [[word(int(id)), float(like)]
                         for id, like in zip(ids[i], likeness[i], strict=True)]}
            for i in range(len(shown))
        ],
    }  # fmt: skip


def _finite(value: float) -> float | None:
    """A number for JSON, which has no −∞: None stands for what a filter has cut."""
    return float(value) if np.isfinite(value) else None
