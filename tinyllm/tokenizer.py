"""Text ↔ token ids, the chat template, and turning tokens back into text as they come.

The heavy lifting is the `tokenizers` library's. What this file adds is that nobody's text can
become a control token. A control token, `<|im_end|>` for one, is how the model sees that a turn
ends; a user who types those ten letters must be read as having typed ten letters. So `encode`
reads control tokens only when asked to, and `apply_chat_template` keeps apart what the template
wrote from what people wrote:

1. In every string that goes into the template, the first letter of anything that is, or could
   become, a control token is swapped for a stand-in letter (`text.stand_ins`).
2. The template is rendered (`text.chat_template`). What now reads as a control token, the template
   has written.
3. Those are swapped for secret names, and the stand-ins for the letters they stand for.
4. The whole is encoded in one go by a tokenizer that knows the secret names and no others.
"""

from __future__ import annotations

import codecs
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from tinyllm.errors import TokenizerError
from tinyllm.text.characters import TokenTexts
from tinyllm.text.chat_template import ChatTemplates
from tinyllm.text.folder import read_folder
from tinyllm.text.pieces import Pieces, as_json, letters_in_one
from tinyllm.text.stand_ins import ControlTexts, StandIns, check_unicode

LONG_TEXT = 4096  # letters; `encode` keeps the interpreter's lock, `encode_batch_fast` doesn't
# Stands behind the text of a message that is to be gone on with; what follows it is cut off.
_CUT = f"(the text ends here: {secrets.token_hex(16)})"


class Tokenizer(TokenTexts):
    """A checkpoint's tokenizer: `Tokenizer.from_folder(folder)`.

    Attributes:
        eos_ids: the tokens that end an answer.
        bos_ids: what the tokenizer puts in front of a text that is no chat: nothing, or one token.
        special_tokens: the control tokens, text → id.
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
        self.bos_ids = _bos_ids(backend)
        self._pieces = Pieces(backend)
        self._known_bytes: dict[int, bytes] = {}  # what `token_bytes` has been asked for
        self._control = ControlTexts(self.special_tokens)
        self._templates = ChatTemplates(chat_templates or {}, named_tokens or {}, self._control)

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
        names = {
            id: self._secret_names[token.content] if token.special else token.content
            for id, token in sorted(self._added.items())
        }
        # All at once: the library builds its search tree anew with every call.
        self._plain.add_tokens([_renamed(self._added[id], name) for id, name in names.items()])
        self._true_ids = {self._plain.token_to_id(name): id for id, name in names.items()}

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
        facts = read_folder(folder, backend.token_to_id)
        return cls(
            backend,
            eos_ids=facts.eos_ids,
            chat_templates=facts.templates,
            named_tokens=facts.named_tokens,
        )

    @property
    def chat_template(self) -> str | None:
        """The default chat template's Jinja source, or None."""
        return self._templates.sources.get("default")

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return 1 + max(self._full.get_vocab(with_added_tokens=True).values(), default=-1)

    # -- text → ids -----------------------------------------------------------------------------

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids of a text; nothing is added in front or behind (see `encode_prompt`).

        A control token written out in `text` is encoded letter by letter, as the text it is,
        unless `allow_special`. Raises `TokenizerError` on text that is not Unicode (a lone half of
        a surrogate pair).
        """
        check_unicode(text)
        if allow_special:
            return _ids(self._full, text)
        return self._encode_plain(text)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text to go on with: `encode`, behind the `bos_ids` it was trained with."""
        return [*self.bos_ids, *self.encode(text)]

    def least_tokens(self, n_letters: int) -> int:
        """How many tokens a text of so many letters has at least; 0 where nobody can say.

        Each letter is a byte or more, and each token so many bytes at most.
        """
        return n_letters // self._most_letters if self._most_letters else 0

    @cached_property
    def _most_letters(self) -> int:
        """Letters of a text that one token stands for at most; 0 if that isn't known."""
        in_one = letters_in_one(as_json(self._full.normalizer))
        if in_one is None or not self._pieces.reads_any_byte:
            return 0
        return in_one * max((len(self.token_bytes(id)) for id in range(self.vocab_size)), default=0)

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = []
        for id in _ids(self._plain, text):
            if id in self._true_ids:
                ids.append(self._true_ids[id])
            elif id in self._control_ids:  # a vocabulary whose merges spell out a control token
                letters = self._added[id].content
                ids += [t.id for letter in letters for t in self._plain.model.tokenize(letter)]
            else:
                ids.append(id)
        return ids

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size:,} tokens, {len(self.special_tokens)} of them control)"

    # -- ids → text -----------------------------------------------------------------------------

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of some tokens. Bytes that are no UTF-8 become U+FFFD.

        Equal to what `StreamDecoder` gives for the same tokens, save that a tokenizer which puts a
        space before every text (Llama 2's) takes it away again here.
        """
        if not isinstance(ids, Iterable):
            raise TypeError(f"give a list of token ids, as in [{ids!r}]")
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
        if isinstance(token_id, bool) or not hasattr(token_id, "__index__"):
            raise TypeError(f"a token's id must be an integer, not {token_id!r}")
        known = self._known_bytes.get(token_id)
        if known is not None:
            return known
        piece = self._full.id_to_token(int(token_id)) if token_id >= 0 else None
        if piece is None:
            return b""
        raw = self._pieces.bytes_of(piece)
        self._known_bytes[token_id] = raw
        return raw

    # -- chat -----------------------------------------------------------------------------------

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        image_token: str | None = None,
        around_images: str = "",
        **extra: Any,
    ) -> list[int]:
        """The ids of a conversation as the model's own chat template writes it.

        `messages` are OpenAI's: `role`, `content` (a string or parts), `tool_calls`. Where the
        template takes strings only, parts are joined line by line, and `image_token` is written
        for each image among them; `around_images` comes on both sides of each. `extra` goes to the
        template. Only the template (and `image_token`) can write control tokens. With
        `continue_final_message` the ids end where the last message's text does, so that it is gone
        on with. Raises `TokenizerError` when there is no template, or it refuses.
        """
        if continue_final_message:
            *before, last = messages
            messages = [*before, {**last, "content": f"{last['content']}{_CUT}"}]
            add_generation_prompt = False
        text, stand_ins = self._render(messages, tools, add_generation_prompt, image_token, extra)
        if image_token and around_images:  # where people's text can't hold one
            text = text.replace(image_token, f"{around_images}{image_token}{around_images}")
        named = self._control.rename(text, self._secret_names)
        whole = stand_ins.undo(named)
        if continue_final_message:
            whole, found, _ = whole.rpartition(_CUT)
            if not found:
                raise TokenizerError("the chat template doesn't show the last message's text")
        return self._encode_plain(whole)

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
    ) -> tuple[str, StandIns]:
        if image_token is not None and image_token not in self.special_tokens:
            raise TokenizerError(f"image_token {image_token!r} is no control token of this model")
        if not isinstance(messages, (list, tuple)) or not all(
            isinstance(message, Mapping) for message in messages
        ):
            raise TypeError(
                'messages must be a list such as [{"role": "user", "content": "Hello"}], not '
                f"{type(messages).__name__}"
                + (" with something else in it" if isinstance(messages, (list, tuple)) else "")
            )
        return self._templates.render(messages, tools, add_generation_prompt, image_token, extra)


def _ids(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    """A text's ids; `TokenizerError` where the library fails on it."""
    try:
        if len(text) < LONG_TEXT:
            return list(backend.encode(text, add_special_tokens=False).ids)
        return list(backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library's Exception, or its panic, which is none
        raise TokenizerError(f"the tokenizer can't read this text: {error}") from error


class StreamDecoder:
    """Tokens in, text out, as soon as whole characters are there.

    A character of text is up to four bytes of UTF-8 and may be split over tokens. What `push` and
    `flush` return, joined, is `bytes.decode("utf-8", errors="replace")` of all the tokens' bytes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._rest = b""  # the beginning of a character

    @property
    def begun(self) -> bytes:
        """The first bytes of a character that isn't whole yet, or b""."""
        return self._rest

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


def _bos_ids(backend: tokenizers.Tokenizer) -> tuple[int, ...]:
    """What the backend's post-processor puts in front of a text."""
    bare = backend.encode("a", add_special_tokens=False).ids
    dressed = backend.encode("a", add_special_tokens=True).ids
    n_added = len(dressed) - len(bare)
    # What a post-processor puts behind (a T5's </s>) would end the text that is to go on.
    return next(
        (tuple(dressed[:n]) for n in range(n_added + 1) if dressed[n : n + len(bare)] == bare), ()
    )


def _renamed(token: tokenizers.AddedToken, name: str) -> tokenizers.AddedToken:
    """An added token under another name, as a word like any other."""
    return tokenizers.AddedToken(
        name,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=False,
    )
