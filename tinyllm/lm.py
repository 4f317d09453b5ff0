"""`load` a model by name or folder; an `LM` puts tokenizer, weights and decoding together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tinyllm import decode
from tinyllm.config import ModelConfig
from tinyllm.decode import Generation, Session
from tinyllm.errors import ImageError
from tinyllm.fetch import catalog, resolve
from tinyllm.inside.architecture import Architecture
from tinyllm.inside.breakage import broken_here
from tinyllm.inside.explain import Explanation
from tinyllm.inside.hooks import Conditions, HookFn, HookSet, Positions, make_hooks
from tinyllm.inside.lab import Broken, breakages
from tinyllm.inside.points import HookPoints, NamesFilter, hook_points
from tinyllm.inside.reopen import TraceLike, prompt_of, read, redo
from tinyllm.inside.replay import ActivationCache, check_index, run_with_cache
from tinyllm.kernels.formats import Asked, format_of
from tinyllm.kernels.memory import on_huge_pages
from tinyllm.model import Model
from tinyllm.parts import Parts
from tinyllm.prompt import Prompt
from tinyllm.runner import Array, Runner, images_between
from tinyllm.sampler import check_whole, sampling_params
from tinyllm.step import Step
from tinyllm.tokenizer import Tokenizer
from tinyllm.vision.image import ImageSource, list_of_images, read_image, thumbnail
from tinyllm.vision.prompt import ImagePrompts
from tinyllm.weights import Checkpoint

KVDtype = Literal["f16", "f32"]
Backend = Literal["auto", "reference", "compiled"]
Images = ImageSource | Sequence[ImageSource]  # one or several
WHAT_A_PROMPT_IS = "a prompt is text, a list of token ids, or a list of chat messages"
PromptLike = str | Sequence[int] | Sequence[Mapping[str, Any]]  # text, token ids, or a chat


def load(
    name_or_path: str | os.PathLike[str] = "smollm2-135m-instruct",
    *,
    dtype: Asked = "auto",
    backend: Backend = "auto",
    threads: int | None = None,
    kv_dtype: KVDtype | None = None,
    kv_cache_mb: int = 512,
) -> LM:
    """Load a model, fetching its weights the first time.

    Args:
        name_or_path: a known name or alias, a folder (config.json, *.safetensors, tokenizer.json;
            or a card that names parts, see `tinyllm.parts`), a wheel or GGUF file, or
            hf:OWNER/NAME[@REVISION][:FILE.gguf].
        dtype: how the weights are held: f32, bf16, q8, q4, or gguf (a file's blocks as they are);
            q8a8 and q4a8 with activations of 8 bits, too. "auto": f32 in numpy, and in kernels what
            the checkpoint holds, so that nothing is rounded (`kernels/own_format.py`).
        backend: "reference" computes in readable numpy (f32 only), "compiled" in fused kernels;
            "auto" takes numpy for f32 and "auto", and kernels for the rest.
        threads: of the compiled backend; default: one a core, see `kernels.cores`.
        kv_dtype: numbers in the compiled backend's KV cache, f32 or f16; default: f32 beside f32
            weights, f16 beside the others.
        kv_cache_mb: memory of the compiled backend's pool of KV pages.

    Raises:
        FetchError, ConfigError, WeightsError, TokenizerError: each names the file and the remedy.
    """
    if dtype != "auto":
        format_of(dtype)
    if backend not in ("auto", "reference", "compiled"):
        raise ValueError(f"backend must be auto, reference or compiled, not {backend!r}")
    if kv_dtype not in (None, "f32", "f16"):
        raise ValueError(f"kv_dtype must be f32, f16 or None, not {kv_dtype!r}")
    check_whole("threads", 1 if threads is None else threads, 1)
    check_whole("kv_cache_mb", kv_cache_mb, 1)
    if backend == "auto":
        backend = "reference" if dtype in ("auto", "f32") else "compiled"
    if backend == "reference" and dtype not in ("auto", "f32"):
        raise ValueError(f"the reference backend computes in f32; for {dtype} use the compiled one")
    return LM(
        resolve(name_or_path),
        dtype=dtype,
        compiled=backend == "compiled",
        threads=threads,
        kv_dtype=kv_dtype,
        kv_cache_mb=kv_cache_mb,
    )


def reopen(trace: TraceLike, at: int | None = None, *, threads: int | None = None) -> Session:
    """The session of a saved trace, with the model that the trace names; see `LM.reopen`.

    Raises:
        TraceError: it can't be read, or not be gone on with.
        FetchError: no such model is here, nor known by that name: load it, and `lm.reopen(trace)`.
    """
    record = read(trace)
    backend = record.backend if record.backend in ("reference", "compiled") else "auto"
    lm = load(record.model, dtype=record.dtype, backend=backend, threads=threads)  # type: ignore[arg-type]
    return lm.reopen(record, at)


class LM:
    """A language model ready to be asked, stepped through and looked into.

    Attributes:
        parts: what the model is made of.
        folder: where config.json, the weights and tokenizer.json are.
        config: the shape.
        tokenizer: text ↔ ids, and the chat template.
        card: card.json: name, licence, origin, what the model can do.
        runner: what generates: `model` itself, or the compiled path.
    """

    def __init__(
        self, folder: Path, *, dtype: Asked = "auto", compiled: bool = False,
        threads: int | None = None, kv_dtype: KVDtype | None = None, kv_cache_mb: int = 512,
    ) -> None:  # fmt: skip
        self.parts = Parts.of(folder)
        self.folder = self.parts.language_model
        self.config = ModelConfig.from_folder(self.folder)
        self.tokenizer = Tokenizer.from_folder(self.folder)
        self.card, self.name = self.parts.card, self.parts.name
        self._threads = threads
        self.runner: Runner = self.model if not compiled else self._compile(
            dtype, threads=threads, kv_dtype=kv_dtype, kv_cache_mb=kv_cache_mb
        )  # fmt: skip
        self._hooks = HookSet()
        self._last_prompt: Prompt | None = None  # what ran last, for `explain`

    def __repr__(self) -> str:
        c = self.config
        return (
            f"LM({self.name}: {c.n_layers} layers, {c.n_heads} heads on {c.n_kv_heads}, "
            f"dim {c.dim}, vocab {c.vocab_size}, {self.runner.dtype})"
        )

    @cached_property
    def model(self) -> Model:
        """The readable numpy model, whichever path generates."""
        return Model(self.config, on_huge_pages(Checkpoint(self.folder, self.config)))

    def _compile(self, dtype: Asked, *, threads: int | None, **options: Any) -> Runner:
        from tinyllm.compiled import CompiledModel  # numba is only imported when it is used
        from tinyllm.kernels.cores import default_threads
        from tinyllm.kernels.own_format import own_format

        dtype = own_format(self.folder) if dtype == "auto" else dtype
        threads = threads or default_threads()[0]
        return CompiledModel(self.config, self.folder, dtype=dtype, threads=threads, **options)

    @cached_property
    def vision(self) -> ImagePrompts | None:
        """Makes prompts with images; None where the model reads text alone.

        An assembled model's encoder is fetched now, if it isn't here.
        """
        if not self.parts.sees:
            return None
        compiled = not isinstance(self.runner, Model)
        return self.parts.image_side(self.tokenizer, compiled=compiled, threads=self._threads)

    def prompt(self, prompt: PromptLike, images: Images = ()) -> Prompt:
        """A prompt with images: text or a chat, each image part of which takes the next image.

        Args:
            prompt: text, asked as one user's turn behind the images; or messages, whose content
                holds parts {"type": "image"} and {"type": "text", "text": …}. Without images also
                text to go on with as it is, or ids.
            images: one or several: a file's path, its bytes, a PIL image, or pixels (height, width,
                3) uint8.

        Raises:
            ImageError: an image can't be used, there are more or fewer than places for them, or
                the model reads text alone.
        """
        pictures = list_of_images(images)
        if not pictures:
            return Prompt(np.array(self.encode_prompt(prompt), np.int32))
        if self.vision is None:
            raise ImageError(
                f"{self.name} reads text alone; load a vision model to show it images, "
                f"{catalog.DEFAULT_VISION} say"
            )
        if isinstance(prompt, str):
            parts: list[dict[str, Any]] = [{"type": "image"} for _ in pictures]
            prompt = [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]
        items: list[Any] = list(prompt)
        if not all(isinstance(item, Mapping) for item in items):
            raise TypeError("a prompt with images is text or a list of chat messages, not ids")
        pixels = [read_image(image) for image in pictures]
        built = self.vision.prompt(items, pixels)
        spans = zip(built.images, pixels, strict=True)
        return replace(
            built, images=tuple(replace(span, thumbnail=thumbnail(p)) for span, p in spans)
        )

    def encode_prompt(self, prompt: PromptLike) -> list[int]:
        """Text as it is, ids as they are, or a chat (a list of messages) through the template."""
        if isinstance(prompt, str):
            return self.tokenizer.encode_prompt(prompt)
        if isinstance(prompt, (bytes, Mapping)) or not isinstance(prompt, Iterable):
            raise TypeError(f"{WHAT_A_PROMPT_IS}, not {type(prompt).__name__}")
        items: list[Any] = list(prompt)
        if items and all(isinstance(item, Mapping) for item in items):
            return self.tokenizer.apply_chat_template([dict(message) for message in items])
        if not all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in items):
            raise TypeError(WHAT_A_PROMPT_IS)
        return [int(i) for i in items]

    def session(
        self,
        prompt: PromptLike | Prompt,
        *,
        images: Images = (),
        capacity: int | None = None,
        broken: Broken = None,
        **sampling: Any,
    ) -> Session:
        """A session to step through; `sampling` are the fields of SamplingParams.

        While hooks are set, or with something `broken` (see `tinyllm.inside.lab`), it opens on the
        readable path, whatever the backend: hook points are there.
        """
        if not isinstance(prompt, Prompt):
            prompt = self.prompt(prompt, images)
        self._last_prompt = prompt
        under = Conditions(self._hooks.active, breakages(broken) + broken_here())
        return Session(
            self.model if under else self.runner,
            self.tokenizer,
            prompt.tokens.tolist(),
            sampling_params(sampling, ("images", "capacity", "broken")),
            capacity=capacity,
            image_positions=prompt.image_positions,
            image_rows=prompt.image_rows,
            images=prompt.images,
            readable=lambda: self.model,
            hooks=self._hooks,
            broken=breakages(broken),
            name=self.name,
        )

    def reopen(self, trace: TraceLike, at: int | None = None) -> Session:
        """The session of a saved trace, to look into and to go on with, from any of its steps.

        With the model, format and backend of the trace, all that comes is the same to the bit.

        Args:
            trace: a file of `session.trace().save(path)`, `tinyllm chat` or `step`, or what it
                holds; or a server's, `answer.choices[0].trace`, if `"trace": {"whole": true}` asked
                for it. Its images are in it.
            at: how many of its steps to take; default: all.

        Raises:
            TraceError: it can't be read, or it doesn't have all steps.
            ValueError: `at` is beyond its steps.

        Warns:
            TraceDiffers: the numbers aren't the trace's.
        """
        record = read(trace)
        redo(session := self.session(prompt_of(record)), record, at)
        return session

    def decode_steps(
        self,
        prompt: PromptLike | Prompt,
        *,
        images: Images = (),
        max_tokens: int = 100,
        broken: Broken = None,
        **sampling: Any,
    ) -> Iterator[Step]:
        """Decode step by step until the model ends its turn or `max_tokens` are out."""
        session = self._bounded_session(prompt, images, max_tokens, broken, sampling)
        return decode.decode_steps(session, max_tokens)

    def generate(
        self,
        prompt: PromptLike | Prompt,
        *,
        images: Images = (),
        max_tokens: int = 100,
        broken: Broken = None,
        **sampling: Any,
    ) -> Generation:
        """Complete a prompt; the same tokens as `decode_steps` with the same arguments."""
        session = self._bounded_session(prompt, images, max_tokens, broken, sampling)
        return decode.generate(session, max_tokens)

    def chat(
        self,
        message: str | Sequence[Mapping[str, Any]],
        *,
        images: Images = (),
        max_tokens: int = 200,
        broken: Broken = None,
        **sampling: Any,
    ) -> str:
        """A question, or a conversation so far, about the images if there are any; the answer.

        Args:
            message: a text, or messages {"role": …, "content": …}.
            images, max_tokens, broken: as in `generate`.
            sampling: fields of SamplingParams; greedy by default.
        """
        sampling.setdefault("temperature", 0.0)
        chat: PromptLike = message
        if isinstance(message, str) and not list_of_images(images):
            chat = [{"role": "user", "content": message}]
        return self.generate(
            chat, images=images, max_tokens=max_tokens, broken=broken, **sampling
        ).text

    def _bounded_session(
        self,
        prompt: PromptLike | Prompt,
        images: Images,
        max_tokens: int,
        broken: Broken,
        sampling: Mapping[str, Any],
    ) -> Session:
        sampling_params(sampling, ("max_tokens", "images", "broken"))
        check_whole("max_tokens", max_tokens, 0)
        if not isinstance(prompt, Prompt):
            prompt = self.prompt(prompt, images)
        capacity = len(prompt.tokens) + max(max_tokens - 1, 0)  # nothing follows the last one
        return self.session(prompt, capacity=capacity, broken=broken, **sampling)

    # Looking inside -----------------------------------------------------------------------------

    def architecture(self) -> Architecture:
        """What the model is made of, as a table: parts, parameters, bytes of KV cache a token."""
        return Architecture.of(self.config, self.name)

    def hook_points(self) -> HookPoints:
        """Every hook point: name, shape, the checkpoint's tensor, the line of model.py."""
        return HookPoints(hook_points(self.config))

    @contextmanager
    def hooks(
        self, hooks: Sequence[tuple[NamesFilter, HookFn]], *, positions: Positions = "all"
    ) -> Iterator[None]:
        """Run everything in the `with` block through hooks, the KV cache included.

        Args:
            hooks: pairs of a hook point's name (or glob) and a function fn(act, *, hook). It
                returns None to leave the array as it is, or an array of the same shape and dtype
                to go on with. `hook.positions` are absolute, `hook.layer` is the layer.
            positions: "all", "prompt", "generated" or a list of absolute positions: the function
                sees and changes the rows of these alone.

        Raises:
            HookError: an unknown name (with the nearest ones), or a result that doesn't fit.

        Warns:
            HookNeverRan: a hook was never called in the block.
        """
        with self._hooks.set(make_hooks(self.config, hooks, positions)):
            yield

    def run_with_cache(
        self,
        prompt: PromptLike | Prompt,
        names_filter: NamesFilter = None,
        *,
        images: Images = (),
        broken: Broken = None,
    ) -> tuple[Array, ActivationCache]:
        """One forward over a prompt: logits (T, vocab_size), and the activations by name.

        Args:
            names_filter: a hook point's name or glob, several, a function of the name, or None
                for all (a warning tells when that takes more than 256 MB).
            broken: parts that are wrong in this forward; see `tinyllm.inside.lab`.
        """
        if not isinstance(prompt, Prompt):
            prompt = self.prompt(prompt, images)
        self._last_prompt = prompt
        return run_with_cache(
            self.model,
            prompt.tokens.tolist(),
            names_filter,
            under=Conditions(self._hooks.active, breakages(broken) + broken_here()),
            image_positions=prompt.image_positions,
            image_rows=prompt.image_rows,
        )

    def run_with_hooks(
        self,
        prompt: PromptLike | Prompt,
        hooks: Sequence[tuple[NamesFilter, HookFn]],
        *,
        positions: Positions = "all",
    ) -> Array:
        """Logits (T, vocab_size) of one forward over a prompt with hooks set; see `hooks`."""
        with self.hooks(hooks, positions=positions):
            return self.run_with_cache(prompt, names_filter=())[0]

    def explain(
        self,
        name: str,
        pos: int = -1,
        *,
        prompt: PromptLike | Prompt | None = None,
        head: int | None = None,
        key: int | None = None,
        dim: int | None = None,
    ) -> Explanation:
        """One number of a prompt's forward as its formula, with the actual values put in.

        A step, and what `peek` gives, have an `explain` of their own: of their forward, and of what
        the sampler made of its logits.

        Args:
            name: a hook point, as in "blocks.3.attn.hook_pattern", or "logits".
            pos: which token of the prompt; negative ones count from the end.
            prompt: default: the one that this model was given last.
            head, key, dim: the entry's other indices; see `LooksInside.explain`.
        """
        if prompt is None:
            prompt = self._last_prompt
        if prompt is None:
            raise ValueError("nothing has been run yet to explain; give prompt=")
        if not isinstance(prompt, Prompt):
            prompt = self.prompt(prompt)
        self._last_prompt = prompt
        check_index("pos", pos, len(prompt.tokens))
        end = pos % len(prompt.tokens) + 1
        where, rows = images_between(prompt.image_positions, prompt.image_rows, 0, end)
        next_token = Session(
            self.model,
            self.tokenizer,
            prompt.tokens[:end].tolist(),
            capacity=end,
            image_positions=where,
            image_rows=rows,
            hooks=self._hooks,
        ).peek()
        next_token.rerun.dtype = self.runner.dtype  # whose kernels are asked, too
        return next_token.explain(name, head=head, key=key, dim=dim)
