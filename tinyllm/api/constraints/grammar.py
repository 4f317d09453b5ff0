"""JSON Schema → token masks: what may come next so that the output always fits.

The grammar engine is llguidance. Beside it stood xgrammar and outlines-core. llguidance covers
most of JSON Schema (recursive `$ref`, unions, `allOf`, patterns, formats, ranges) and *refuses*
what it doesn't instead of ignoring it; it compiles lazily, so a schema costs a few milliseconds
and no automaton is built ahead; a mask over 49,152 tokens takes about 10 µs; fuel limits bound
every step; and it needs neither torch nor transformers. xgrammar requires both, and accepts
schemas whose keywords it doesn't hold; outlines-core turns a schema into a regular expression
first, which has no recursion, and walks the whole vocabulary for every state ahead of time.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tinyllm.api.constraints import trial
from tinyllm.api.constraints.trial import Trials, never
from tinyllm.api.limits import MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH

if TYPE_CHECKING:  # imported with the first grammar, which a server makes behind its first requests
    from llguidance import LLMatcher

_JSON_STYLE = {
    "whitespace_flexible": False,  # else a small model may write spaces for ever
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,  # an unknown keyword is an error, never ignored
    "coerce_one_of": False,
}


class UnsupportedSchema(ValueError):
    """The schema can't be followed; the message says what about it, `index` which of several."""

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class TooComplex(UnsupportedSchema):
    """Compiling the schema takes more time or memory than anybody gets."""


class Vocabulary(Protocol):
    """What the grammar needs to know of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def special_tokens(self) -> Mapping[str, int]: ...
    def encode(self, text: str) -> list[int]: ...
    def token_bytes(self, token_id: int) -> bytes: ...


class _Wrapped:
    """A tokenizer in the shape that llguidance's wrapper asks for."""

    bos_token_id = None

    def __init__(self, tokenizer: Vocabulary, eos_id: int) -> None:
        self.eos_token_id = eos_id
        self.special_token_ids = sorted(tokenizer.special_tokens.values())
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        if isinstance(text, bytes):  # the wrapper tries which of the two is taken
            raise TypeError("text, not bytes")
        return self._encode(text)


class Matcher:
    """One choice's place in a grammar. It never raises; `error` says why it gave up."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._bits = np.zeros((vocab_size + 31) // 32, np.int32)

    @property
    def error(self) -> str:
        return self._matcher.get_error() if self._matcher.is_error() else ""

    def allowed(self) -> NDArray[np.bool_]:
        """What may come next, (vocab_size,) bool. End-of-text is among it once all is complete."""
        bits = self._bits
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        mask = np.unpackbits(bits.view(np.uint8), bitorder="little", count=self._vocab_size)
        return mask.view(np.bool_)

    @property
    def accepting(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_accepting())

    def copy(self) -> Matcher:
        """An independent matcher at the same place."""
        return Matcher(self._matcher.deep_copy(), self._vocab_size)

    def forced(self) -> Sequence[int]:
        """The tokens of the one string that can come next, in the tokenizer's own cut of it."""
        tokens: list[int] = self._matcher.compute_ff_tokens()
        return tokens

    def accept(self, token: int) -> bool:
        """Take note of a token. True when nothing can follow (or all is lost, see `error`)."""
        return not self._matcher.consume_token(token) or self._matcher.is_stopped()


class Grammar:
    """A compiled grammar; any number of choices may follow it."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def matcher(self) -> Matcher:
        """A fresh matcher at its start. Safe from any thread."""
        return Matcher(self._matcher.deep_copy(), self._vocab_size)


class Grammars:
    """Compiles grammars for one tokenizer, and keeps the recent ones. Safe from any thread."""

    def __init__(
        self, tokenizer: Vocabulary, vocab_size: int, eos_ids: Sequence[int], keep: int = 64
    ) -> None:
        from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

        wrapped = _Wrapped(tokenizer, eos_ids[0])
        wrapper = TokenizerWrapper(wrapped)
        self.tokens: Sequence[bytes] = wrapped.tokens
        self._vocab_size = vocab_size
        self._tokenizer = LLTokenizer(
            wrapper, n_vocab=vocab_size, eos_token=list(eos_ids), slices=LLTokenizer.json_slices()
        )
        limits = LLParserLimits(
            verbose_errors=False, max_grammar_size=200_000, step_lexer_fuel=100_000
        )
        self._new = partial(LLMatcher, self._tokenizer, log_level=0, limits=limits)
        self._keep = keep
        self._lock = threading.Lock()
        self._compiled: OrderedDict[bytes, Grammar] = OrderedDict()
        self._trials = Trials()

    def start(self) -> None:
        """Start what compiling needs, ahead of the first grammar; from any thread."""
        self._trials.start()

    def compile(
        self, grammar: str, gone: Callable[[], bool] = never, trial_text: str | None = None
    ) -> Grammar:
        """A grammar that is ready to be followed. May take seconds: use a thread.

        Args:
            grammar: as llguidance reads it.
            gone: whether nobody waits for it any more.
            trial_text: the same without tokens by their ids, to be tried first; `grammar` itself if
                it has none.

        Raises UnsupportedSchema, or its TooComplex; GivenUp.
        """
        name = hashlib.sha256(grammar.encode()).digest()
        with self._lock:
            if name in self._compiled:
                self._compiled.move_to_end(name)
                return self._compiled[name]
        try:
            error = self._trials.compile(trial_text or grammar, gone)
        except trial.TooComplex:
            raise TooComplex(
                f"compiling it takes more than {self._trials.seconds:g} s of a processor, or "
                f"more than {self._trials.memory >> 20} MiB"
            ) from None
        if not error:
            matcher = self._new(grammar)
            if not matcher.is_error():
                matcher.compute_bitmask()  # builds the first state's automaton, shows dead ends
            error = matcher.get_error() if matcher.is_error() else ""
        if error:
            raise UnsupportedSchema(_first_line(error))
        with self._lock:
            compiled = self._compiled[name] = Grammar(matcher, self._vocab_size)
            while len(self._compiled) > self._keep:
                self._compiled.popitem(last=False)
        return compiled


def _first_line(message: str) -> str:
    """The heart of llguidance's message, without positions in a grammar nobody has seen."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for line in lines:
        if line.startswith("error:"):
            return line.removeprefix("error:").strip()
    first = lines[0] if lines else "it can't be compiled"
    first = first.rpartition("failed to compile JSON schema: ")[2]
    if first.startswith("oneOf"):
        return "oneOf is followed only where its options can't hold at once; anyOf always is"
    return first[:300]


# -- schemas ---------------------------------------------------------------------------------


def json_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of one JSON value that fits `schema`."""
    return f"%llguidance {{}}\nstart: %json {prepared(schema)}\n"


def prepared(schema: Mapping[str, Any]) -> str:
    """A schema as JSON text for a grammar. Raises UnsupportedSchema when it is too big or deep.

    Two liberties are taken, which only ever narrow what is written: an object that lists its
    properties gets no others unless the schema asks for them, and if the outermost object says
    nothing of what is required, all of its plain properties are.
    """
    if depth_of(schema) > MAX_SCHEMA_DEPTH:
        raise UnsupportedSchema(f"it is nested more than {MAX_SCHEMA_DEPTH} levels deep")
    text = json.dumps(schema)
    if len(text) > MAX_SCHEMA_BYTES:
        raise UnsupportedSchema(f"it has {len(text)} bytes, more than {MAX_SCHEMA_BYTES}")
    own: dict[str, Any] = json.loads(text)
    _tidy(own, close=False)
    text = json.dumps(own)
    combined = any(f'"{keyword}"' in text for keyword in _COMBINING)
    _tidy(own, close=not combined)
    own["x-guidance"] = _JSON_STYLE
    properties = own.get("properties")
    if isinstance(properties, dict) and "required" not in own and not combined:
        own["required"] = [
            name
            for name, schema in properties.items()
            if schema is not False and '"$ref"' not in json.dumps(schema)
        ]
    return json.dumps(own)


# Keywords that lay several schemas over one value: closing one would shut out the others.
_COMBINING = ("allOf", "$dynamicRef", "unevaluatedProperties", "patternProperties")
# Keywords under which there are more schemas: one or several in a list, and several by name.
INNER_SCHEMAS = ("items", "prefixItems", "anyOf", "oneOf", "allOf", "additionalProperties", "not",
          "additionalItems", "contains", "unevaluatedProperties", "unevaluatedItems")  # fmt: skip
NAMED_SCHEMAS = ("properties", "$defs", "definitions", "patternProperties")
# The formats that can be held to; any other is a note to the reader, as JSON Schema has it.
FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)


def _tidy(node: Any, close: bool) -> None:
    """Drop what says nothing, and (with `close`) shut objects that are silent about more keys."""
    if isinstance(node, list):
        for item in node:
            _tidy(item, close)
        return
    if not isinstance(node, dict):
        return
    if isinstance(node.get("format"), str) and node["format"] not in FORMATS:
        del node["format"]
    if node.get("uniqueItems") is False:
        del node["uniqueItems"]
    if node.get("propertyNames") in ({}, True, {"type": "string"}):  # any object's are
        node.pop("propertyNames", None)
    for keyword in ("allOf", "anyOf", "oneOf"):
        match node.get(keyword):
            case [dict(only)] if not only.keys() & (node.keys() - {keyword}):
                del node[keyword]
                node.update(only)
    properties, required = node.get("properties"), node.get("required", [])
    if close and isinstance(properties, dict) and properties and isinstance(required, list):
        alone = not ({"anyOf", "oneOf", "$ref"} & node.keys())
        if alone and all(isinstance(name, str) and name in properties for name in required):
            node.setdefault("additionalProperties", False)
    for keyword in INNER_SCHEMAS:
        if keyword in node:
            _tidy(node[keyword], close)
    for keyword in NAMED_SCHEMAS:
        if isinstance(node.get(keyword), dict):
            for item in node[keyword].values():
                _tidy(item, close)


def depth_of(value: Any) -> int:
    """How many objects and arrays lie inside each other."""
    deepest, pending = 0, [(value, 1)]
    while pending:
        item, depth = pending.pop()
        if isinstance(item, (Mapping, list)):
            deepest = max(deepest, depth)
            inner = item.values() if isinstance(item, Mapping) else item
            pending.extend((child, depth + 1) for child in inner)
    return deepest
