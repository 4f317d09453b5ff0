"""KV caches of texts that were looked at, so that a look costs one token's forward.

A look must be a pure function of token ids: the same bits, whether the text was looked at before,
in whole or in part, or never. But a matrix product's last bits hang on how many rows it has, and
with them on where a text happened to be cut. So texts are taken in whole blocks of the same size,
always cut at the same places; the last block is filled up with a repeated token, which no earlier
token can see. Whatever two texts have in common is then the same to the bit, and is computed once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyllm.errors import CacheFull
from tinyllm.kv_cache import KVCache
from tinyllm.model import Model
from tinyllm.prompt import Prompt

PREFIX_BLOCK = 64  # tokens; what a text costs at most beyond its own length
KEPT_BYTES = 96 << 20  # of caches: 2,180 tokens of SmolLM2-135M, 440 of Qwen3-0.6B

Keys = NDArray[np.int64]


@dataclass
class _Text:
    keys: Keys  # (T,) what each position was computed from
    cache: KVCache  # whole blocks; at least T positions


class Prefixes:
    """Caches of a readable model's texts, least recently used out first. For one thread.

    Args:
        model: the readable model.
        max_bytes: of all caches together that are kept; the one in use is kept in any case.
    """

    def __init__(self, model: Model, max_bytes: int = KEPT_BYTES) -> None:
        self.model = model
        self._max_bytes = max_bytes
        self._texts: OrderedDict[int, _Text] = OrderedDict()
        self._count = 0

    @property
    def n_tokens(self) -> int:
        """Tokens that are kept."""
        return sum(text.cache.length for text in self._texts.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the caches that are kept."""
        return sum(text.cache.nbytes for text in self._texts.values())

    @contextmanager
    def before(
        self, prompt: Prompt, length: int, go_on: Callable[[], None] = lambda: None
    ) -> Iterator[KVCache]:
        """A cache of a text's first `length` tokens, with room for one more, inside the block.

        Args:
            prompt: the text, images' rows included.
            length: from 0 to the context's length - 1.
            go_on: called before each block that has to be computed; may raise to give up.

        Raises:
            ValueError: a token id outside the vocabulary.
            CacheFull: the text is longer than the context.
        """
        limit = self.model.config.max_seq_len
        if length >= limit:
            raise CacheFull(f"the context holds {limit} tokens; position {length + 1} is beyond it")
        cache = self._filled(prompt, length, go_on)
        with cache.lent(length) as lent:
            yield lent

    def _filled(self, prompt: Prompt, length: int, go_on: Callable[[], None]) -> KVCache:
        """A kept cache whose first `length` positions are the text's, and that holds one more."""
        keys = prompt_keys(prompt)
        name, common = None, 0
        for candidate, text in self._texts.items():
            shared = common_prefix(text.keys, keys)
            if shared > common:
                name, common = candidate, shared
        if name is not None:
            self._texts.move_to_end(name)
            found = self._texts[name]
            if common >= length and found.cache.length > length:
                return found.cache
        common = min(common, length)
        start = common // PREFIX_BLOCK * PREFIX_BLOCK
        end = min((length // PREFIX_BLOCK + 1) * PREFIX_BLOCK, self.model.config.max_seq_len)
        if name is None:
            cache = self.model.new_cache(end)
        else:
            grown = common == len(self._texts[name].keys)  # then nobody needs the shorter one
            source = self._texts.pop(name) if grown else self._texts[name]
            cache = source.cache.fork(start, capacity=end)
        for block in range(start, length, PREFIX_BLOCK):
            go_on()
            self._fill_block(cache, prompt, length, block, min(block + PREFIX_BLOCK, end))
        cache.advance(end - cache.length)  # the place of the one more
        self._count += 1
        self._texts[self._count] = _Text(keys[:length], cache)
        while len(self._texts) > 1 and self.nbytes > self._max_bytes:
            self._texts.popitem(last=False)
        return cache

    def _fill_block(
        self, cache: KVCache, prompt: Prompt, length: int, start: int, end: int
    ) -> None:
        tokens = prompt.tokens[start : min(end, length)]
        filled = np.zeros(end - start, np.int64)  # token 0 behind the text's end
        filled[: len(tokens)] = tokens
        where, rows = prompt.images_between(start, start + len(tokens))
        self.model.forward(filled, cache, logits="none", image_positions=where, image_rows=rows)


def prompt_keys(prompt: Prompt) -> Keys:
    """What each position is computed from: a token's id, or an image row's negative key."""
    keys = prompt.tokens.astype(np.int64)
    if prompt.image_positions is not None and prompt.image_keys is not None:
        keys[prompt.image_positions] = prompt.image_keys
    return keys


def common_prefix(a: Keys | Sequence[int], b: Keys | Sequence[int]) -> int:
    """How many of their first entries two lists share."""
    n = min(len(a), len(b))
    (apart,) = np.nonzero(np.asarray(a[:n]) != np.asarray(b[:n]))
    return int(apart[0]) if len(apart) else n
