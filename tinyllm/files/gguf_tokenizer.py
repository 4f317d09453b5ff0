"""The tokenizer inside a GGUF file → a `tokenizers` object, and tokenizer_config.json.

Two kinds are read, by `tokenizer.ggml.model`: "gpt2", byte-level BPE with its merges and the name
of a pre-tokenizer; and "llama", SentencePiece's BPE, which has a score for each piece in place of
merges. Both equal the model's own tokenizer.json in ids and text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from tinyllm.errors import FetchError
from tinyllm.files import pre_tokenizers
from tinyllm.files.gguf import GGUF
from tinyllm.files.gguf_config import get

# tokenizer.ggml.token_type (llama.h, enum llama_token_type)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "▁"  # SentencePiece's letter for it
READ = "byte-level BPE (gpt2) and SentencePiece with scores (llama) are read"
REMEDY = "fetch the model's own folder (hf:OWNER/NAME) instead"


def build_tokenizer(gguf: GGUF) -> Tokenizer:
    """The file's tokenizer. Raises `FetchError` on a kind that isn't read, or a damaged one."""
    kind = get(gguf, "tokenizer.ggml.model", str)
    tokens = get(gguf, "tokenizer.ggml.tokens", list)
    kinds = gguf.metadata.get("tokenizer.ggml.token_type")
    kinds = [NORMAL] * len(tokens) if kinds is None else list(kinds)
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise FetchError(f"{gguf.path}: its vocabulary is damaged (token types or doubles)")
    try:
        if kind == "gpt2":
            tokenizer, adds_bos = _byte_level(gguf, tokens)
        elif kind in ("llama", "gemma4"):
            tokenizer, adds_bos = _sentencepiece(gguf, tokens, kinds)
        else:
            names = {"bert": "WordPiece", "t5": "a unigram model", "rwkv": "RWKV's"}
            raise FetchError(
                f"{gguf.path}: its tokenizer is {names.get(kind, repr(kind))}; {READ}; {REMEDY}"
            )
    except FetchError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise FetchError(f"{gguf.path}: its vocabulary is damaged: {error}") from error
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind != USER_DEFINED, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (CONTROL, USER_DEFINED) or (kind == UNKNOWN and token.startswith("<"))
        ]
    )
    _add_ends(gguf, tokenizer, tokens, adds_bos)
    return tokenizer


def _byte_level(gguf: GGUF, tokens: Sequence[str]) -> tuple[Tokenizer, bool]:
    # Files of before 2024 don't say; GPT-2's and Pythia's are cut by the first of all patterns.
    old = get(gguf, "general.architecture", str) in ("gpt2", "gptneox")
    name = gguf.metadata.get("tokenizer.ggml.pre", "gpt-2" if old else "default")
    words = pre_tokenizers.WORDS.get(name)
    if words is None:
        raise FetchError(
            f"{gguf.path}: its tokenizer cuts words by {name!r}, which is not known here; {REMEDY}"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in get(gguf, "tokenizer.ggml.merges", list)]
    model = models.BPE(
        vocab={token: id for id, token in enumerate(tokens)},
        merges=merges,
        ignore_merges=words.ignore_merges,
    )
    tokenizer = Tokenizer(model)
    if words.nfc:
        tokenizer.normalizer = pre_tokenizers.normalizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.pre_tokenizer(words)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, words.adds_bos


def _sentencepiece(
    gguf: GGUF, tokens: Sequence[str], kinds: Sequence[int]
) -> tuple[Tokenizer, bool]:
    """▁ for spaces, a piece for each stray byte, merges by score (or written out: Gemma 4)."""
    if "tokenizer.ggml.merges" in gguf.metadata:
        merges = [tuple(merge.split(" ", 1)) for merge in get(gguf, "tokenizer.ggml.merges", list)]
    else:
        scores = get(gguf, "tokenizer.ggml.scores", np.ndarray).tolist()
        merges = list(merges_by_score(tokens, scores, kinds))
    unknown = gguf.metadata.get("tokenizer.ggml.unknown_token_id")
    if unknown is None:
        unknown = next((id for id, kind in enumerate(kinds) if kind == UNKNOWN), None)
    model = models.BPE(
        vocab={token: id for id, token in enumerate(tokens)},
        merges=merges,
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    spaces: list[Any] = [normalizers.Replace(" ", SPACE)]
    decoding: list[Any] = [
        decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()
    ]  # fmt: skip
    default = get(gguf, "tokenizer.ggml.model", str) == "llama"
    if gguf.metadata.get("tokenizer.ggml.add_space_prefix", default):
        spaces.insert(0, normalizers.Prepend(SPACE))
        decoding.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(decoding)
    return tokenizer, True


def merges_by_score(
    tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """SentencePiece joins whichever neighbours make the piece of the best score: those as merges.

    Every way to cut a piece into two is a merge, and a merge comes before another where its piece
    has the better score. `transformers/tokenization_utils_sentencepiece.py`, generate_merges.
    """
    ids = {
        token: id
        for id, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (NORMAL, USER_DEFINED, UNUSED)
    }
    found = [
        (-scores[id], ids[piece[:at]], ids[piece[at:]], piece, at)
        for piece, id in ids.items()
        for at in range(1, len(piece))
        if piece[:at] in ids and piece[at:] in ids
    ]
    found.sort()
    for _, _, _, piece, at in found:
        yield piece[:at], piece[at:]


def _add_ends(gguf: GGUF, tokenizer: Tokenizer, tokens: Sequence[str], adds_bos: bool) -> None:
    """What goes in front of every text and behind it."""
    template, special = "$A", []
    for role, added in (("bos", adds_bos), ("eos", False)):
        token = gguf.metadata.get(f"tokenizer.ggml.{role}_token_id")
        if token is None or not gguf.metadata.get(f"tokenizer.ggml.add_{role}_token", added):
            continue
        if not 0 <= token < len(tokens):
            raise FetchError(f"{gguf.path}: its {role} token {token} is outside the vocabulary")
        special.append((tokens[token], token))
        template = f"{tokens[token]} {template}" if role == "bos" else f"{template} {tokens[token]}"
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=special
        )


def tokenizer_config(gguf: GGUF, config: dict[str, Any]) -> dict[str, Any]:
    """`tokenizer_config.json`: the chat templates and which token plays which role."""
    tokens = gguf.metadata["tokenizer.ggml.tokens"]
    raw: dict[str, Any] = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for role, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        token = gguf.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if token is not None and not 0 <= token < len(tokens):
            raise FetchError(f"{gguf.path}: its {role} token {token} is outside the vocabulary")
        if token is not None:
            raw[f"{role}_token"] = tokens[token]
    templates = {
        key.removeprefix("tokenizer.chat_template").lstrip(".") or "default": value
        for key, value in gguf.metadata.items()
        if key.startswith("tokenizer.chat_template") and isinstance(value, str)
    }
    if set(templates) == {"default"}:
        raw["chat_template"] = templates["default"]
    elif templates:
        raw["chat_template"] = [{"name": n, "template": t} for n, t in templates.items()]
    return raw
