"""Images into prompts: each image token becomes the image's own rows, encoded once and kept.

What differs between models is how an image is laid out in tokens and how its rows are computed;
`ImageEmbedder` is that part. What is the same is here: finding the places in a rendered chat,
spreading each into the image's layout, and keeping what was encoded, by content, within a bound.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tinyllm.errors import ImageError
from tinyllm.prompt import ImageSpan, Prompt
from tinyllm.tokenizer import Tokenizer
from tinyllm.vision.seen import Seen

CACHE_BYTES = 64 * 1024 * 1024
KEY_BITS = 62
SEEN = 32  # images of which it is kept what became of them


@dataclass(frozen=True)
class EncodedImage:
    """One image as the language model takes it.

    `layout` are the token ids that stand in the prompt for the image, of which those equal to the
    image token take the rows, in order.
    """

    layout: tuple[int, ...]
    rows: NDArray[np.float32]  # (M, dim), or with more that the family's forward reads

    @cached_property
    def digest(self) -> int:
        """Of the rows, KEY_BITS bits: what a prompt with them is recognised by."""
        content = hashlib.sha256(np.ascontiguousarray(self.rows).data).digest()
        return int.from_bytes(content[:8], "little") >> (64 - KEY_BITS)


class ImageEmbedder(Protocol):
    """What one family of vision models does with an image."""

    image_token: str  # what stands for an image in a rendered chat
    row_token: str  # what stands for one of its rows in a layout; often the same
    around: str  # text on both sides of an image
    whole: bool  # an image's rows see one another, so that one forward has to take them all

    def encode(self, image: NDArray[np.uint8]) -> tuple[tuple[int, ...], NDArray[np.float32]]:
        """(H, W, 3) RGB → the layout in tokens, and a row (dim,) for each image token in it."""

    def seen(self, image: NDArray[np.uint8]) -> Seen:
        """(H, W, 3) RGB → its patches, and what each row stands for, in the rows' order."""


class ImagePrompts:
    """Makes prompts out of conversations with images. Safe from several threads.

    Args:
        embedder: the model's own part.
        tokenizer: with the model's chat template.
        cache_bytes: of encoded images that are kept, least recently used out first.
    """

    def __init__(
        self, embedder: ImageEmbedder, tokenizer: Tokenizer, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self.embedder = embedder
        self.tokenizer = tokenizer
        self.image_id, self.row_id = (
            self._id(name) for name in (embedder.image_token, embedder.row_token)
        )
        self._cache_bytes = cache_bytes
        self._kept: OrderedDict[bytes, EncodedImage] = OrderedDict()
        self._kept_bytes = 0
        self._seen: OrderedDict[bytes, Seen] = OrderedDict()
        self._lock = threading.Lock()

    def _id(self, name: str) -> int:
        found = self.tokenizer.special_tokens.get(name)
        if found is None:
            raise ImageError(
                f"the tokenizer has no control token {name}, which stands for an "
                "image in this model's prompts; take tokenizer.json from the same checkpoint"
            )
        return found

    @property
    def kept_bytes(self) -> int:
        """Bytes of the rows that are kept."""
        return self._kept_bytes

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[NDArray[np.uint8]],
        **extra: Any,
    ) -> Prompt:
        """A conversation as a prompt: each part {"type": "image"} takes the next of `images`.

        Args:
            messages: the chat template's; only it can write an image token, never a user's text.
            images: (H, W, 3) uint8 RGB each.
            extra: goes to `Tokenizer.apply_chat_template`.

        Raises:
            ImageError: not as many images as places for them.
            TokenizerError: the template refuses the messages.
        """
        ids = self.tokenizer.apply_chat_template(
            messages,
            image_token=self.embedder.image_token,
            around_images=self.embedder.around,
            **extra,
        )
        places = ids.count(self.image_id)
        if places != len(images):
            raise ImageError(f"the messages have {places} places for images, not {len(images)}")
        return self.spread(ids, [self.encode(image) for image in images])

    def spread(self, ids: Sequence[int], images: Sequence[EncodedImage]) -> Prompt:
        """Put each image's layout where an image token stands in `ids`."""
        waiting = iter(images)
        tokens: list[int] = []
        spans: list[ImageSpan] = []
        for token in ids:
            if token != self.image_id:
                tokens.append(token)
                continue
            image = next(waiting)
            spans.append(ImageSpan(len(tokens), len(tokens) + len(image.layout)))
            tokens += image.layout
        return self._prompt(tokens, images, spans)

    def around(self, tokens: Sequence[int], images: Sequence[NDArray[np.uint8]]) -> Prompt:
        """The prompt of token ids in which the images' layouts stand already, in their order.

        Args:
            tokens: as `prompt(…).tokens` has them, and what was said behind them.
            images: (H, W, 3) uint8 RGB each.

        Raises:
            ImageError: naming the first image whose layout doesn't stand there.
        """
        ids = list(tokens)
        encoded = [self.encode(image) for image in images]
        spans: list[ImageSpan] = []
        at = 0
        for i, image in enumerate(encoded):
            layout, n = list(image.layout), len(image.layout)
            last = len(ids) - n
            while at <= last and (ids[at] != layout[0] or ids[at : at + n] != layout):
                at += 1
            if at > last:
                raise ImageError(f"image {i} has no place: its {n} tokens don't stand in the ids")
            spans.append(ImageSpan(at, at + n))
            at += n
        return self._prompt(ids, encoded, spans)

    def seen(self, image: NDArray[np.uint8]) -> tuple[Seen, NDArray[np.float32]]:
        """One image (H, W, 3): what becomes of it, and the rows (M, dim) that stand for it."""
        name = _content(image)
        with self._lock:
            seen = self._seen.pop(name, None)
        seen = seen or self.embedder.seen(image)
        with self._lock:
            self._seen[name] = seen
            while len(self._seen) > SEEN:
                self._seen.popitem(last=False)
        return seen, self.encode(image).rows

    def _prompt(
        self, tokens: list[int], images: Sequence[EncodedImage], spans: Sequence[ImageSpan]
    ) -> Prompt:
        array = np.array(tokens, np.int32)
        if not images:
            return Prompt(array)
        where = [s.start + np.flatnonzero(array[s.start : s.stop] == self.row_id) for s in spans]
        # Distinct along the image, so that no shifted copy of it can be taken for it.
        keys = [-1 - (image.digest + j) % (1 << KEY_BITS)
                for image in images for j in range(len(image.rows))]  # fmt: skip
        return Prompt(
            tokens=array,
            image_positions=np.concatenate(where).astype(np.int64),
            image_rows=np.concatenate([image.rows for image in images]),
            image_keys=np.array(keys, np.int64),
            images=tuple(spans),
            whole_images=self.embedder.whole,
        )

    def encode(self, image: NDArray[np.uint8]) -> EncodedImage:
        """One image (H, W, 3), from what is kept where it was encoded before."""
        name = _content(image)
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        layout, rows = self.embedder.encode(image)
        encoded = EncodedImage(layout, rows)
        with self._lock:
            if name not in self._kept and rows.nbytes <= self._cache_bytes:
                self._kept[name] = encoded
                self._kept_bytes += rows.nbytes
            while self._kept_bytes > self._cache_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._kept_bytes -= oldest.rows.nbytes
        return encoded


def _content(image: NDArray[np.uint8]) -> bytes:
    """What an image is kept under: its shape and its pixels."""
    content = hashlib.sha256(repr(image.shape).encode())
    content.update(np.ascontiguousarray(image).data)
    return content.digest()
