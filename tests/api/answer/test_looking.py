"""What /look answers, beside the notebook's step over the same cache: the same to the bit."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

import numpy as np
import pytest

from tests.inside.test_many_rows import wide_model
from tests.tiny import CONFIG, bytes_tokenizer, tiny_model
from tinyllm.api.answer.looking import Looks
from tinyllm.api.contract.look import LookRequest
from tinyllm.api.limits import LOOKS_AT_ONCE
from tinyllm.api.prompt.served import EngineLike, ServedModel
from tinyllm.decode import Session
from tinyllm.inside.many_rows import RowByRow
from tinyllm.inside.prefixes import Prefixes
from tinyllm.model import Model
from tinyllm.prompt import Prompt
from tinyllm.sampler import SamplingParams

MODEL = tiny_model()
TEXT = [int(t) for t in np.random.default_rng(3).integers(0, 256, 150)]
PARAMS = {"temperature": 0.8, "top_k": 30, "top_p": 0.9, "seed": 11}
N_PROMPT, POSITION = 100, 130
FORK = [*TEXT[:110], 7, 8, 9, 10, 11, 12]
PARTS = [{"part": "attn", "layer": 0}, {"part": "mlp", "layer": 1},
         {"part": "head", "layer": 1, "head": 1}]  # fmt: skip
NUMBERS = [
    {"name": "blocks.1.attn.hook_pattern", "head": 1, "key": 3},
    {"name": "blocks.0.mlp.hook_post", "dim": 2}, {"name": "blocks.1.hook_resid_post", "dim": 5},
    {"name": "ln_final.hook_normalized", "dim": 4}, {"name": "logits", "dim": 9},
    {"name": "p_raw", "dim": 9}, {"name": "top_k", "dim": 9}, {"name": "p", "dim": 9},
]  # fmt: skip


def served(model: Model = MODEL) -> ServedModel:
    return ServedModel(
        "tiny", bytes_tokenizer(), cast("EngineLike", None), CONFIG.vocab_size, "fp",
        readable=lambda: model,
    )  # fmt: skip


def looked(
    looks: Looks,
    want: dict[str, Any],
    text: list[int] = TEXT,
    position: int = POSITION,
    model: Model = MODEL,
) -> dict[str, Any]:
    asked = LookRequest.model_validate(
        {"model": "tiny", "tokens": text, "position": position, "n_prompt": N_PROMPT,
         "want": want, **PARAMS}
    )  # fmt: skip
    return asyncio.run(looks.answer(asked, (), served(model), "somebody"))


@pytest.mark.parametrize("wide", [False, True])  # whose products are compiled
@pytest.mark.parametrize(("text", "position"), [(TEXT, POSITION), (FORK, len(FORK) - 1)])
def test_explained_and_causal_and_cache_are_a_steps_to_the_bit(
    text: list[int], position: int, wide: bool
) -> None:
    looks = Looks()
    model = wide_model() if wide else MODEL
    with Prefixes(model).before(Prompt(np.array(text, np.int32)), position - 1) as cache:
        session = Session(
            RowByRow(model), bytes_tokenizer(), text[:N_PROMPT], SamplingParams(**PARAMS),  # type: ignore[arg-type]
            said=text[N_PROMPT:position], cache=cache,
        )  # fmt: skip
        step = session.step(text[position])
        for number in NUMBERS:
            got = looked(looks, {"explain": number}, text, position, model)["explain"]
            own = step.explain(**number)  # type: ignore[arg-type]
            for name in ("formula", "filled", "source", "line", "tensor"):
                assert got[name] == getattr(own, name), number
            finite = [x if np.isfinite(x) else None for x in (own.value, own.recomputed)]
            assert [got["value"], got["recomputed"]] == finite
            assert got["n_terms"] == len(own.terms)
            for mine, theirs in zip(got["terms"], own.terms, strict=False):
                value = theirs.value if np.isfinite(theirs.value) else None
                assert (mine["label"], mine["value"]) == (theirs.label, value)
        causal = looked(looks, {"causal": PARTS}, text, position, model)["causal"]
        own_map = step.causal_map(1)
        assert [one["nats"] for one in causal] == [
            own_map.attn[0], own_map.mlp[1], own_map.heads[1]
        ]  # fmt: skip
        told = looked(looks, {"cache": True, "timing": True}, text, position, model)
        view = step.cache
        assert told["cache"] == {"n_tokens": view.n_tokens, "nbytes": view.nbytes}
        assert list(told["timing"]["seconds"]) == list(step.timing().seconds)
        assert len(told["timing"]["by_layer"]) == CONFIG.n_layers
        assert sum(told["timing"]["seconds"].values()) > 0
    looks.close()


def test_looks_that_take_long_leave_a_thread_to_others() -> None:
    may_end = threading.Event()

    class Slow(Looks):
        def _look(self, asked: LookRequest, *more: Any) -> dict[str, Any]:
            if asked.break_ is not None:  # until the short look was answered
                assert may_end.wait(10)
            return super()._look(asked, *more)

    looks = Slow()

    def asked(**more: Any) -> LookRequest:
        body = {"model": "tiny", "tokens": [5] * 21, "position": 20, "want": {"lens": 1}}
        return LookRequest.model_validate({**body, **more})

    async def run() -> None:
        broken = asked(n_prompt=2, **{"break": "layer-norm"})
        others = [
            asyncio.create_task(looks.answer(broken, (), served(), "greedy"))
            for _ in range(2 * LOOKS_AT_ONCE)
        ]
        await asyncio.sleep(0.1)
        assert (await looks.answer(asked(), (), served(), "polite"))["lens"]
        may_end.set()
        assert {found["broken"] for found in await asyncio.gather(*others)} == {"layer-norm"}

    asyncio.run(run())
    looks.close()


def test_the_same_ids_give_the_same_bits_afresh_and_behind_a_fork() -> None:
    wants: list[dict[str, Any]] = [{"explain": number} for number in NUMBERS]
    wants += [{"causal": PARTS}, {"cache": True}, {"lens": 3, "attention": {"layer": 1}}]
    fresh = Looks()
    for want in wants:
        warm = Looks()
        looked(warm, {"lens": 1}, FORK, 112)  # shares 110 tokens, then goes another way
        looked(warm, {"lens": 1}, TEXT, 40)
        first = looked(fresh, want)
        assert looked(warm, want) == first == looked(fresh, want)
        warm.close()
    fresh.close()
