"""From settings to served models: each loaded, its engine running."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from functools import cache
from pathlib import Path

from tinyllm.api.house.settings import Settings
from tinyllm.api.prompt.defaults import SamplingDefaults
from tinyllm.api.prompt.served import ServedModel
from tinyllm.api.prompt.vision import LazyVision
from tinyllm.compiled import CompiledModel
from tinyllm.config import ModelConfig
from tinyllm.engine.engine import Engine
from tinyllm.errors import ConfigError
from tinyllm.fetch import is_here, resolve
from tinyllm.kernels import ahead, processor
from tinyllm.kernels.cores import default_threads
from tinyllm.kernels.formats import with_8_bit_activations
from tinyllm.kernels.own_format import own_format
from tinyllm.model import Model
from tinyllm.parts import Parts
from tinyllm.runner import Runner
from tinyllm.tokenizer import Tokenizer
from tinyllm.weights import load_weights

GRAMMARS_AFTER = 2.0  # seconds behind the loading
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
        ahead.prepare_beside()
    # What `tinyllm.load` does, without all that can be done with an `LM`.
    folder = parts.language_model
    config, tokenizer = ModelConfig.from_folder(folder), Tokenizer.from_folder(folder)
    readable = cache(lambda: Model(config, load_weights(folder, config)))
    runner: Runner
    if settings.backend == "compiled":
        runner = CompiledModel(
            config,
            folder,
            own_format(folder) if dtype == "auto" else dtype,
            threads,
            None if settings.kv_dtype == "auto" else settings.kv_dtype,
            settings.kv_cache_mb,
        )
        runner.pool.claim_memory(CLAIMED_TOKENS)
        ahead.prepare()  # what is damaged is mended now, and not while somebody waits for a look
    elif dtype in ("auto", "f32"):
        runner = readable()
    else:
        raise ConfigError(
            f"the reference backend computes in f32; for {dtype} use the compiled one"
        )
    engine = Engine(
        runner,
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        kv_cache_mb=settings.kv_cache_mb,
    )
    engine.start()
    model = ServedModel(
        id=Parts.of(folder).name,
        tokenizer=tokenizer,
        engine=engine,
        vocab_size=config.vocab_size,
        dtype=runner.dtype,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        shape=config,
        readable=readable,  # loaded when it is first looked into
        fingerprint=runner.fingerprint,
        defaults=SamplingDefaults(parts.sampling_defaults(), settings.sampling()),
        processor=processor.NAME if settings.backend == "compiled" else "numpy",
    )
    # Behind the first requests, so that it holds none of them up, and the first grammar nobody.
    grammars = threading.Timer(GRAMMARS_AFTER, lambda: model.grammars.start())
    grammars.daemon = True
    grammars.start()
    return model
