"""From settings to served models: each loaded, its engine running."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import tinyllm
from tinyllm.api.house.settings import Settings
from tinyllm.api.prompt.defaults import SamplingDefaults
from tinyllm.api.prompt.served import ServedModel
from tinyllm.api.prompt.vision import LazyVision
from tinyllm.compiled import CompiledModel
from tinyllm.engine.engine import Engine
from tinyllm.fetch import is_here, resolve
from tinyllm.kernels import drawing, processor
from tinyllm.kernels.cores import default_threads
from tinyllm.kernels.formats import with_8_bit_activations
from tinyllm.kernels.own_format import own_format
from tinyllm.parts import Parts
from tinyllm.tokenizer import Tokenizer

CLAIMED_TOKENS = 2048  # room in the KV cache that is in memory before anybody waits for it


def load_models(settings: Settings) -> list[ServedModel]:
    """Every model that the settings name, on a running engine for each language model.

    Models that differ in their image side alone share the rest, so its weights are in memory once.
    """
    models: list[ServedModel] = []
    language_models: dict[Path, ServedModel] = {}
    for name in settings.model:
        parts = Parts.of(resolve(name))
        base = language_models.get(parts.language_model) or _language_model(parts, settings)
        language_models[parts.language_model] = base
        model = replace(
            base,
            id=parts.name,
            card=parts.card,
            fingerprint="fp_" + parts.fingerprint(base.fingerprint)[:16],
            vision=_vision(parts, base.tokenizer, settings) if parts.sees else None,
            created=int(parts.card.get("created", 0)),
            base=base,
        )
        models.append(model)
    return models


def _vision(parts: Parts, tokenizer: Tokenizer, settings: Settings) -> LazyVision:
    """The image side of one model; loaded already where it is part of a whole checkpoint."""
    compiled, threads = settings.backend == "compiled", settings.threads or None
    vision = LazyVision(
        parts.name, lambda: parts.image_side(tokenizer, compiled=compiled, threads=threads)
    )
    if parts.image_encoder is None:
        vision.start().result()  # raises what is wrong with the checkpoint
    elif not is_here(parts.image_encoder):
        vision.start()  # in the background: the first image needn't wait for a download
    return vision


def _language_model(parts: Parts, settings: Settings) -> ServedModel:
    """What models share that have it in common: loaded, its engine running."""
    dtype = settings.dtype
    if settings.backend == "compiled" and settings.activations == "8":
        own = own_format(parts.language_model) if dtype == "auto" else dtype
        dtype = with_8_bit_activations(own)
    threads = settings.threads
    if settings.backend == "compiled":
        threads, why = (threads, "as asked") if threads else default_threads()
        kind = f"{processor.NAME} kernels on {threads} thread{'s' if threads > 1 else ''}"
        print(f"tinyllm: {kind}: {why}", file=sys.stderr, flush=True)
        drawing.prepare_beside()
    lm = tinyllm.load(
        parts.language_model,
        dtype=dtype,
        backend=settings.backend,
        threads=threads or None,
        kv_dtype=None if settings.kv_dtype == "auto" else settings.kv_dtype,
        kv_cache_mb=settings.kv_cache_mb,
    )
    if isinstance(lm.runner, CompiledModel):
        lm.runner.pool.claim_memory(CLAIMED_TOKENS)
    engine = Engine(
        lm.runner,
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        kv_cache_mb=settings.kv_cache_mb,
    )
    engine.start()
    model = ServedModel(
        id=lm.name,
        tokenizer=lm.tokenizer,
        engine=engine,
        vocab_size=lm.config.vocab_size,
        dtype=lm.runner.dtype,
        n_layers=lm.config.n_layers,
        n_heads=lm.config.n_heads,
        shape=lm.config,
        readable=partial(getattr, lm, "model"),  # loaded when it is first looked into
        fingerprint=lm.runner.fingerprint,
        defaults=SamplingDefaults(parts.sampling_defaults(), settings.sampling()),
        processor=processor.NAME if settings.backend == "compiled" else "numpy",
    )
    # Beside the rest of the loading, so that the first grammar holds nobody up.
    threading.Thread(target=lambda: model.grammars.start(), name="grammars", daemon=True).start()
    return model
