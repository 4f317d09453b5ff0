"""Text ↔ token ids, the chat template, and turning tokens back into text as they come.

The heavy lifting is the `tokenizers` library's. What this file adds is that nobody's text can
become a control token. A control token, `<|im_end|>` for one, is how the model sees that a turn
ends; a user who types those ten letters must be read as having typed ten letters. So `encode`
reads control tokens only when asked to, and `apply_chat_template` keeps apart what the template
wrote from what people wrote:

1. In every string that goes into the template, the first letter of anything that is, or could
   become, a control token is swapped for a stand-in letter that occurs nowhere else.
2. The template is rendered. What now reads as a control token, the template has written.
3. Those are swapped for secret names, and the stand-ins for the letters they stand for.
4. The whole is encoded in one go by a tokenizer that knows the secret names and no others.
"""

from __future__ import annotations

import codecs
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.ext
import jinja2.sandbox
import tokenizers
from jinja2 import nodes
from jinja2.parser import Parser

from tinyllm.errors import TokenizerError

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function", "ipython"})
PRIVATE_USE = range(0xE000, 0xF900)  # code points that mean nothing: stand-ins are taken from here


class Tokenizer:
    """A checkpoint's tokenizer: `Tokenizer.from_folder(folder)`.

    `eos_ids` are the tokens that end an answer, `special_tokens` the control tokens by their text,
    `chat_template` the Jinja source or None, `vocab_size` one more than the largest id.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_ids: Sequence[int] = (),
        chat_templates: Mapping[str, str] | None = None,
        named_tokens: Mapping[str, str] | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._full = backend  # reads control tokens
        self._added = backend.get_added_tokens_decoder()
        self.special_tokens: dict[str, int] = {
            token.content: id for id, token in sorted(self._added.items()) if token.special
        }
        self._control_ids = frozenset(self.special_tokens.values())
        self.eos_ids = tuple(eos_ids)
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self._templates = dict(chat_templates or {})
        self._named_tokens = dict(named_tokens or {})
        self._pieces = _Pieces(backend)
        self._known_bytes: dict[int, bytes] = {}  # what `token_bytes` has been asked for

        # The tokenizer for text: the same model, but it knows each control token only by a secret
        # name. Ids beyond the vocabulary are given out anew here, so `_true_ids` leads back.
        secret = secrets.token_hex(8)
        self._secret_names = {
            content: f"\U00100000{secret}.{id}\U00100001"
            for content, id in self.special_tokens.items()
        }
        self._plain = tokenizers.Tokenizer(backend.model)
        for part in ("normalizer", "pre_tokenizer"):
            if getattr(backend, part) is not None:
                setattr(self._plain, part, getattr(backend, part))
        self._true_ids: dict[int, int] = {}
        for id, token in sorted(self._added.items()):
            name = self._secret_names[token.content] if token.special else token.content
            known_as = tokenizers.AddedToken(
                name,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
                special=False,
            )
            self._plain.add_tokens([known_as])
            plain_id = self._plain.token_to_id(name)
            if plain_id is not None:
                self._true_ids[plain_id] = id
        self._any_special = _any_of(self.special_tokens)

    @classmethod
    def from_folder(cls, folder: Path | str) -> Tokenizer:
        """Read `tokenizer.json` and what goes with it. Raises `TokenizerError` naming the file."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(
                f"{path} is missing: a model folder needs its tokenizer in this form "
                "(sentencepiece .model files are not read)"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library's Exception, or its panic, which is none
            raise TokenizerError(f"{path} cannot be read: {error}") from error
        options = _read_json(folder / "tokenizer_config.json")
        named = {
            key: value["content"] if isinstance(value, dict) else value
            for key, value in options.items()
            if key in ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token")
            and isinstance(value["content"] if isinstance(value, dict) else value, str)
        }
        eos: list[int] = []
        for name in ("generation_config.json", "config.json"):
            value = _read_json(folder / name).get("eos_token_id")
            eos += [id for id in (value if isinstance(value, list) else [value]) if type(id) is int]
        if "eos_token" in named and (id := backend.token_to_id(named["eos_token"])) is not None:
            eos.append(id)
        return cls(
            backend,
            eos_ids=sorted(set(eos)),
            chat_templates=_read_templates(folder, options),
            named_tokens=named,
        )

    @property
    def chat_template(self) -> str | None:
        """The default chat template's Jinja source, or None."""
        return self._templates.get("default")

    # -- text → ids -----------------------------------------------------------------------------

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids of a text; nothing is added in front or behind.

        A control token written out in `text` is encoded letter by letter, as the text it is,
        unless `allow_special`. Raises `TokenizerError` on text that is not Unicode (a lone half of
        a surrogate pair).
        """
        _check_unicode(text)
        if allow_special:
            return list(self._full.encode(text, add_special_tokens=False).ids)
        return self._encode_plain(text)

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = []
        for id in self._plain.encode(text, add_special_tokens=False).ids:
            if id in self._true_ids:
                ids.append(self._true_ids[id])
            elif id in self._control_ids:  # a vocabulary whose merges spell out a control token
                letters = self._added[id].content
                ids += [t.id for letter in letters for t in self._plain.model.tokenize(letter)]
            else:
                ids.append(id)
        return ids

    # -- ids → text -----------------------------------------------------------------------------

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of some tokens. Bytes that are no UTF-8 become U+FFFD.

        Equal to what `StreamDecoder` gives for the same tokens, save that a tokenizer which puts a
        space before every text (Llama 2's) takes it away again here.
        """
        raw = b"".join(
            self.token_bytes(id) for id in ids if not (skip_special and id in self._control_ids)
        )
        text = raw.decode("utf-8", errors="replace")
        return text[1:] if self._pieces.strips_space and text.startswith(" ") else text

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for, as raw bytes: perhaps only a part of a character.

        A control token gives its own text; an id that no token has gives b"" (embedding tables are
        often padded beyond the vocabulary).
        """
        known = self._known_bytes.get(token_id)
        if known is not None:
            return known
        added = self._added.get(token_id)
        piece = self._full.id_to_token(token_id) if token_id >= 0 else None
        if added is None and piece is None:
            return b""
        raw = added.content.encode("utf-8") if added else self._pieces.bytes_of(piece or "")
        self._known_bytes[token_id] = raw
        return raw

    def token_text(self, token_id: int) -> str:
        r"""A token for display: on one line, with `\n` and stray bytes (`\xe2`) escaped."""
        raw = self.token_bytes(token_id)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            return "".join(chr(b) if 32 <= b < 127 else f"\\x{b:02x}" for b in raw)
        return "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
        )

    # -- chat -----------------------------------------------------------------------------------

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        image_token: str | None = None,
        **extra: Any,
    ) -> list[int]:
        """The ids of a conversation as the model's own chat template writes it.

        `messages` are OpenAI's: `role`, `content` (a string or parts), `tool_calls`. Where the
        template takes strings only, parts are joined line by line, and `image_token` is written
        for each image among them. `extra` goes to the template. Only the template (and
        `image_token`) can write control tokens. Raises `TokenizerError` when there is no template,
        or it refuses.
        """
        text, stand_ins = self._render(messages, tools, add_generation_prompt, image_token, extra)
        named = self._any_special.sub(lambda match: self._secret_names[match[0]], text)
        return self._encode_plain(stand_ins.undo(named))

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        image_token: str | None = None,
        **extra: Any,
    ) -> str:
        """The same as text, for display: do not encode it, people's text and the template's mix."""
        text, stand_ins = self._render(messages, tools, add_generation_prompt, image_token, extra)
        return stand_ins.undo(text)

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        image_token: str | None,
        extra: dict[str, Any],
    ) -> tuple[str, _StandIns]:
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        source = self._templates.get(name)
        if source is None:
            raise TokenizerError(
                "this model has no chat template: it completes text and was not made for chat"
            )
        if image_token is not None and image_token not in self.special_tokens:
            raise TokenizerError(f"image_token {image_token!r} is no control token of this model")
        stand_ins = _StandIns(self.special_tokens, [source, messages, tools, extra])
        style = _content_style(source)
        chat = [
            _prepare(stand_ins.protect_message(message), image_token, style) for message in messages
        ]
        context = {
            **self._named_tokens,
            **stand_ins.protect(extra),
            "messages": chat,
            "tools": stand_ins.protect(list(tools)) if tools else None,
            "documents": stand_ins.protect(extra.get("documents")),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._compiled(name).render(context), stand_ins
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise TokenizerError(f"the chat template refuses these messages: {error}") from error
        except (RecursionError, OverflowError, MemoryError) as error:
            raise TokenizerError(f"the chat template cannot be run: {error!r}") from error

    def _compiled(self, name: str) -> jinja2.Template:
        try:
            return self._environment.from_string(self._templates[name])
        except jinja2.TemplateSyntaxError as error:
            raise TokenizerError(f"the chat template is not valid Jinja: {error}") from error

    @cached_property
    def _environment(self) -> jinja2.sandbox.ImmutableSandboxedEnvironment:
        """The environment that published templates expect, as `transformers` sets it up."""
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        return environment


class StreamDecoder:
    """Tokens in, text out, as soon as whole characters are there.

    A character of text is up to four bytes of UTF-8 and may be split over tokens. What `push` and
    `flush` return, joined, is `bytes.decode("utf-8", errors="replace")` of all the tokens' bytes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._rest = b""  # the beginning of a character

    def push(self, token: int) -> str:
        """Take a token; return the characters that are complete with it, perhaps none."""
        raw = self._rest + self._tokenizer.token_bytes(token)
        text, n_read = codecs.utf_8_decode(raw, "replace", False)
        self._rest = raw[n_read:]
        return text

    def flush(self) -> str:
        """End the text: U+FFFD once for bytes that never became a character, else nothing."""
        text, _ = codecs.utf_8_decode(self._rest, "replace", True)
        self._rest = b""
        return text


# -- keeping people's text apart from the template's ---------------------------------------------


class _StandIns:
    """Swaps letters so that no string of ours can read as, or become part of, a control token."""

    def __init__(self, specials: Iterable[str], inputs: object) -> None:
        self._specials = [special for special in specials if special]
        self._heads = {s[:k] for s in self._specials for k in range(1, len(s))}
        self._tails = {s[k:] for s in self._specials for k in range(1, len(s))}
        self._longest = max(map(len, self._specials), default=0)
        used = set().union(*map(set, _strings(inputs)), *self._specials)
        self._free = (chr(c) for c in PRIVATE_USE if chr(c) not in used)
        self._letters: dict[str, str] = {}  # letter → its stand-in

    def protect(self, value: Any) -> Any:
        """`value` with every string in it made harmless.

        Words that templates look for, the keys and what stands under "type", are only searched
        for whole control tokens: `text` is also the middle of `<jupyter_text>`.
        """
        if isinstance(value, str):
            return self._swap(value, self._inside(value) | self._at_ends(value))
        if isinstance(value, Mapping):
            return {
                self._word(key): self._word(item) if key == "type" else self.protect(item)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.protect(item) for item in value]
        return value

    def protect_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """As `protect`; but a role stays as it is, for templates do write `<|{{ role }}|>`."""
        safe: dict[str, Any] = self.protect(message)
        role = message.get("role")
        if isinstance(role, str) and role in ROLES:
            safe["role"] = role
        return safe

    def undo(self, text: str) -> str:
        """Give every stand-in its letter back, also where a template wrote it as a JSON escape."""
        for letter, stand_in in self._letters.items():
            text = text.replace(stand_in, letter)
            text = text.replace(f"\\u{ord(stand_in):04x}", json.dumps(letter)[1:-1])
        return text

    def _word(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._swap(value, self._inside(value))
        return self.protect(value)

    def _inside(self, text: str) -> set[int]:
        """Where a control token is written out in the text."""
        places: set[int] = set()
        for special in self._specials:
            at = text.find(special)
            while at >= 0:
                places.add(at)
                at = text.find(special, at + 1)
        return places

    def _at_ends(self, text: str) -> set[int]:
        """Where the text could become part of a control token by what a template puts around it."""
        places: set[int] = set()
        start = len(text) - len(text.lstrip())  # templates trim, which moves the ends
        end = len(text.rstrip())
        for first, last in {(0, len(text)), (start, end)}:
            core = text[first:last]
            if core and any(core in special for special in self._specials):  # the middle of one
                places.add(first)
            for k in range(1, min(self._longest, len(core) + 1)):
                if core[:k] in self._tails:  # the end of one
                    places.add(first)
                if core[-k:] in self._heads:  # the beginning of one
                    places.add(last - k)
        return places

    def _swap(self, text: str, places: set[int]) -> str:
        letters = list(text)
        for place in places:
            letter = letters[place]
            if letter not in self._letters:
                stand_in = next(self._free, None)
                if stand_in is None:
                    raise TokenizerError("the messages use up all private-use letters")
                self._letters[letter] = stand_in
            letters[place] = self._letters[letter]
        return "".join(letters)


def _strings(value: object) -> Iterator[str]:
    """All strings inside nested lists and mappings; each checked to be Unicode."""
    if isinstance(value, str):
        _check_unicode(value)
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


# What a template does with a message's content: go through its parts, ask whether it is a string.
CONTENT = r"content(['\"]\])?"
WALKS_PARTS = re.compile(rf"\bin\s+[\w.\[\]'\"]*{CONTENT}\s*-?%|{CONTENT}\[0\]")
ASKS_WHICH = re.compile(rf"{CONTENT}\s+is\s+(not\s+)?(string|iterable|sequence|mapping)")


def _content_style(template: str) -> Literal["string", "parts", "either"]:
    """In which form a template takes the content of a message."""
    if not WALKS_PARTS.search(template):
        return "string"
    return "either" if ASKS_WHICH.search(template) else "parts"


def _prepare(
    message: dict[str, Any], image_token: str | None, style: Literal["string", "parts", "either"]
) -> dict[str, Any]:
    """A message as templates expect it: arguments as objects, content in the template's form."""
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        message["tool_calls"] = [_parse_arguments(call) for call in calls]
    content = message.get("content")
    if isinstance(content, str) and style == "parts":
        message["content"] = [{"type": "text", "text": content}]
    if isinstance(content, list) and style == "string":
        texts = []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text" and isinstance(part.get("text"), str):
                texts.append(part["text"])
            elif kind in ("image", "image_url", "input_image") and image_token:
                texts.append(image_token)
            else:
                raise TokenizerError(
                    f"a content part of type {kind!r} cannot be put into this model's prompt"
                )
        message["content"] = "\n".join(texts)
    return message


def _parse_arguments(call: Any) -> Any:
    """OpenAI sends a call's arguments as a JSON string; templates want the object."""
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            arguments = json.loads(function["arguments"])
        except ValueError:
            return call
        if isinstance(arguments, dict):
            return {**call, "function": {**function, "arguments": arguments}}
    return call


# -- what published templates use ------------------------------------------------------------------


class _Generation(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}` marks the model's words; here it does nothing."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own interface)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter escapes `<` and `&` for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


# -- reading the folder ----------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} when there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} should hold a JSON object, not a {type(value).__name__}")
    return value


def _read_templates(folder: Path, options: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name. A file of its own goes before the one inside tokenizer_config."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return {"default": path.read_text(encoding="utf-8")}
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"{path} cannot be read: {error}") from error
    inside = _read_json(folder / "chat_template.json").get("chat_template")
    inside = options.get("chat_template") if inside is None else inside
    if isinstance(inside, str):
        return {"default": inside}
    if isinstance(inside, list):  # several, by name
        return {
            entry["name"]: entry["template"]
            for entry in inside
            if isinstance(entry, dict)
            and isinstance(entry.get("name"), str)
            and isinstance(entry.get("template"), str)
        }
    return {}


class _Pieces:
    """How a vocabulary spells bytes: byte by byte in stand-in letters (GPT-2), or as text with
    `▁` for a space and `<0xE2>` for a stray byte (sentencepiece)."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        kinds = list(_decoder_steps(_as_json(backend.decoder)))
        names = {step["type"] for step in kinds}
        self._byte_level = "ByteLevel" in names
        self._byte_fallback = "ByteFallback" in names
        if not self._byte_level and not names & {"Metaspace", "ByteFallback", "Replace"}:
            raise TokenizerError(
                f"tokenizer.json decodes with {sorted(names) or 'nothing'}; byte-level and "
                "sentencepiece tokenizers are read here"
            )
        self.strips_space = any(
            (step["type"] == "Strip" and step.get("start", 0) > 0)
            or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
            for step in kinds
        )

    def bytes_of(self, piece: str) -> bytes:
        if self._byte_level:
            try:
                return bytes(_BYTE_OF_LETTER[letter] for letter in piece)
            except KeyError:
                return piece.encode("utf-8")
        if self._byte_fallback and re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode("utf-8")


def _as_json(part: Any) -> Any:
    """A component of a tokenizer as tokenizer.json spells it."""
    return None if part is None else json.loads(part.__getstate__())


def _decoder_steps(decoder: Any) -> Iterator[dict[str, Any]]:
    if isinstance(decoder, dict):
        if decoder.get("type") == "Sequence":
            for step in decoder["decoders"]:
                yield from _decoder_steps(step)
        else:
            yield decoder


def _byte_letters() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100 on.

    openai/gpt-2, src/encoder.py, `bytes_to_unicode`.
    """
    letters: dict[str, int] = {}
    spare = 0x100
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte <= 0xFF:
            letters[chr(byte)] = byte
        else:
            letters[chr(spare)] = byte
            spare += 1
    return letters


_BYTE_OF_LETTER = _byte_letters()


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of the words at the leftmost place, as the tokenizers library does."""
    longest_first = sorted(filter(None, words), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text is not Unicode: half of a surrogate pair at position {error.start}"
        ) from error
