"""KV caches of texts that were looked at, so that a look costs one token's forward.

A look must be a pure function of token ids: the same bits, whether the text was looked at before,
in whole or in part, or never. But a matrix product's last bits hang on how many rows it has, and
with them on where a text happened to be cut. So texts are taken in blocks of the same size, and
their own tokens say where. A block goes on with what comes next in the text, and is filled up with
a repeated token where nothing does: no earlier token can see either. Whatever two texts have in
common is then the same to the bit, and is computed once.

The blocks' products are compiled (`many_rows.py`).

The first block ends where the first message does, if that is short: it is the system prompt, which
a class of conversations has in common. Where an image's rows see each other, later ones too, no
block ends inside an image.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tinyllm.errors import CacheFull
from tinyllm.inside.many_rows import ManyRows
from tinyllm.kv_cache import KVCache
from tinyllm.model import Model
from tinyllm.prompt import Prompt
from tinyllm.runner import call_end

PREFIX_BLOCK = 40  # tokens; what a text costs at most beyond its own length
FIRST_MESSAGE = 16  # tokens that it has at least, to be a block by itself
# Of caches: 6,500 tokens of SmolLM2-135M, so that thirty conversations of 200 tokens stay together;
# 1,300 of Qwen3-0.6B.
KEPT_BYTES = 288 << 20

Keys = NDArray[np.int64]


@dataclass(eq=False)
class _Text:
    """One text's cache, for the thread that holds its lock.

    Any thread may read `keys`: while the lock is taken, they say what the cache is going to hold.
    """

    keys: Keys  # (T,) what each position is computed from
    cache: KVCache  # whole blocks
    lock: threading.Lock = field(default_factory=threading.Lock)


class Prefixes:
    """Caches of a readable model's texts, least recently used out first; for several threads.

    Different texts are computed at the same time; who asks for one that is in use waits for it.

    Args:
        model: the readable model.
        control: the ids of control tokens, of which some end a message.
        max_bytes: of all caches together that are kept; the newest is kept in any case.
        place: what is held while a text is computed, and never while another is waited for.
    """

    def __init__(
        self,
        model: Model,
        control: Collection[int] = (),
        max_bytes: int = KEPT_BYTES,
        place: AbstractContextManager[object] | None = None,
    ) -> None:
        self.model = model
        self._place = nullcontext() if place is None else place
        self._many_rows = ManyRows(model)
        self._control = np.array(sorted(control), np.int64)
        self._max_bytes = max_bytes
        self._texts: list[_Text] = []  # least recently used first
        self._listed = threading.Lock()  # guards the list

    @property
    def n_tokens(self) -> int:
        """Tokens that the kept caches have room for."""
        return sum(text.cache.capacity for text in self._texts)

    @property
    def nbytes(self) -> int:
        """Bytes of the caches that are kept."""
        return sum(text.cache.capacity_nbytes for text in self._texts)

    @contextmanager
    def before(
        self, prompt: Prompt, length: int, go_on: Callable[[], None] = lambda: None
    ) -> Iterator[KVCache]:
        """A cache of a text's first `length` tokens, with room for one more, inside the block.

        Args:
            prompt: the text, images' rows included. What comes behind `length` is computed with it
                as far as the block goes, which costs nothing, and is there when it's asked for.
            length: from 0 to the context's length - 1.
            go_on: called before each block that has to be computed; may raise to give up.

        Raises:
            ValueError: a token id outside the vocabulary.
            CacheFull: the text is longer than the context.
        """
        limit = self.model.config.max_seq_len
        if length >= limit:
            raise CacheFull(f"the context holds {limit} tokens; position {length + 1} is beyond it")
        cuts = self._cuts(prompt, length)
        prompt = prompt.first(min(cuts.end(length), limit))
        end = min(max(cuts.start(length) + PREFIX_BLOCK, cuts.end(length)), limit)
        text = self._taken(prompt_keys(prompt), cuts, end)
        try:
            self._fill(text, prompt, length, cuts, end, go_on)
            self._let_go()
            with text.cache.lent(length) as lent:
                yield lent
        finally:
            text.lock.release()

    def _cuts(self, prompt: Prompt, length: int) -> Cuts:
        """Where blocks end, as far as behind `length`."""
        here = np.isin(prompt.tokens[FIRST_MESSAGE:PREFIX_BLOCK], self._control)
        first = FIRST_MESSAGE + int(here.argmax()) if here.any() else PREFIX_BLOCK
        ends = range(first, length + 2 * PREFIX_BLOCK, PREFIX_BLOCK)
        config, images = self.model.config, prompt.image_positions
        return Cuts(sorted({call_end(config, images, end) for end in ends}))

    def _taken(self, keys: Keys, cuts: Cuts, end: int) -> _Text:
        """A text that begins like these keys, or as a part of them; its lock is taken."""
        with self._listed:
            shared = [common_prefix(text.keys, keys) for text in self._texts]
            if not cuts.start(max(shared, default=0)):
                return self._added(_Text(keys, self.model.new_cache(end)))
            source = self._texts.pop(int(np.argmax(shared)))
            self._texts.append(source)
        source.lock.acquire()
        common = common_prefix(source.keys, keys)
        if common == min(len(source.keys), len(keys)):  # one is how the other begins
            return source
        start = cuts.start(min(common, source.cache.length))
        try:
            fork = source.cache.fork(start, capacity=end)
        finally:
            source.lock.release()
        with self._listed:
            return self._added(_Text(keys, fork))

    def _added(self, text: _Text) -> _Text:
        """A new text in the list, its lock taken."""
        text.lock.acquire()
        self._texts.append(text)
        return text

    def _let_go(self) -> None:
        """Forget the oldest texts where there are too many; who uses one still has it."""
        with self._listed:
            while len(self._texts) > 1 and self.nbytes > self._max_bytes:
                del self._texts[0]

    def _fill(
        self, text: _Text, prompt: Prompt, length: int, cuts: Cuts, end: int,
        go_on: Callable[[], None],
    ) -> None:  # fmt: skip
        """Compute what a text lacks for `length` positions and one more; its lock is taken."""
        stop = length  # the end of the last block that it needs
        if length > cuts.start(length):
            stop = min(cuts.end(length), end)
        keys = prompt_keys(prompt)[:stop]
        known = min(common_prefix(text.keys, keys), text.cache.length)
        if known >= length and text.cache.length > length:
            return
        start = cuts.start(known)
        cache = text.cache
        if (cache.length, cache.capacity) != (start, end):
            cache = cache.fork(start, capacity=end)
        text.keys, text.cache = keys, cache
        try:
            with self._place:
                while cache.length < stop:
                    go_on()
                    self._fill_block(cache, prompt, min(cuts.end(cache.length), stop))
            cache.advance(end - cache.length)  # the one more may stand at a block's beginning
        except BaseException:
            text.keys = keys[: cache.length]  # who gives up leaves what is done
            raise

    def _fill_block(self, cache: KVCache, prompt: Prompt, stop: int) -> None:
        """The next block, up to `stop`. It always has as many rows, but for a longer image's."""
        start = cache.length
        rows = max(min(PREFIX_BLOCK, cache.capacity - start), stop - start)
        tokens = prompt.tokens[start:stop]
        filled = np.zeros(rows, np.int64)  # token 0 behind the block's end, or the text's
        filled[: len(tokens)] = tokens
        where, images = prompt.images_between(start, start + len(tokens))
        self._many_rows.forward(
            filled, cache, logits="none", image_positions=where, image_rows=images
        )
        cache.truncate(stop)


class Cuts:
    """Where a text's blocks begin and end.

    Args:
        ends: of the blocks from the first one on, ascending.
    """

    def __init__(self, ends: Sequence[int]) -> None:
        self._ends = ends

    def start(self, position: int) -> int:
        """Where the block begins in which a position stands."""
        before = bisect_right(self._ends, position)
        return self._ends[before - 1] if before else 0

    def end(self, position: int) -> int:
        """Where it ends."""
        return self._ends[bisect_right(self._ends, position)]


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
