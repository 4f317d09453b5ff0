"""KV caches of texts that were run with a broken part, each its own: nobody else's forward changes.

What is wrong with a mask, or with positions behind a cache, hangs on how a text is cut up. So a
text is run as a session runs it: the whole prompt first, then one token after the other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tinyllm.inside.breakage import Breakage
from tinyllm.inside.hooks import Conditions, make_tap
from tinyllm.inside.prefixes import PREFIX_BLOCK, common_prefix, prompt_keys
from tinyllm.kv_cache import KVCache
from tinyllm.model import PREFILL_CHUNK, Model
from tinyllm.prompt import Prompt
from tinyllm.runner import calls


@dataclass
class _Text:
    said: list[int]  # tokens behind the prompt that the cache holds
    cache: KVCache


class BrokenTexts:
    """Caches of one model under breakages, least recently used out first. For one thread.

    Args:
        model: the readable model.
        max_bytes: of all caches together that are kept; the one in use is kept in any case.
    """

    def __init__(self, model: Model, max_bytes: int = 96 << 20) -> None:
        self.model = model
        self._max_bytes = max_bytes
        self._texts: OrderedDict[tuple[str, tuple[int, ...]], _Text] = OrderedDict()

    @contextmanager
    def before(
        self,
        breakage: Breakage,
        given: Prompt,
        n_prompt: int,
        length: int,
        go_on: Callable[[], None] = lambda: None,
    ) -> Iterator[KVCache]:
        """A cache of a text's first `length` tokens, with room for one more, inside the block.

        Args:
            breakage: what is wrong in every forward.
            given: the text, at least `length` + 1 tokens, images' rows included.
            n_prompt: how many of them were run at once, at most `length` + 1.
            length: from 0 to the context's length - 1.
            go_on: called before each forward; may raise to give up.
        """
        tokens = given.tokens.tolist()
        prompt = tuple(prompt_keys(given)[:n_prompt].tolist())
        under = Conditions(broken=(breakage,))

        def run(chunk: Sequence[int], cache: KVCache) -> None:
            go_on()
            where, rows = given.images_between(cache.length, cache.length + len(chunk))
            tap = make_tap(self.model, cache, under, n_prompt)
            self.model.forward(
                chunk, cache, logits="none", tap=tap, image_positions=where, image_rows=rows
            )

        text = self._texts.pop((breakage.name, prompt), None)
        if text is None:
            text = _Text([], self.model.new_cache(self._room(n_prompt)))
            images = given.image_positions
            for start, end in calls(self.model.config, images, n_prompt, PREFILL_CHUNK):
                run(tokens[start:end], text.cache)
        said = list(tokens[n_prompt : length + 1])
        shared = common_prefix(text.said, said)
        if shared < len(said):  # another way from there on, or a longer one
            if n_prompt + len(said) > text.cache.capacity:
                room = self._room(n_prompt + len(said))
                text.cache = text.cache.fork(n_prompt + shared, capacity=room)
            text.cache.truncate(n_prompt + shared)
            for token in said[shared:]:
                run([token], text.cache)
            text.said = said
        self._texts[breakage.name, prompt] = text
        while len(self._texts) > 1 and self._nbytes() > self._max_bytes:
            self._texts.popitem(last=False)
        with text.cache.lent(length) as lent:
            yield lent

    def _nbytes(self) -> int:
        return sum(text.cache.capacity_nbytes for text in self._texts.values())

    def _room(self, n_tokens: int) -> int:
        return min(n_tokens + PREFIX_BLOCK, self.model.config.max_seq_len)
