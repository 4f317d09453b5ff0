"""How texts are cut into words before merging, by the names that GGUF files have for it.

A GGUF file says `tokenizer.ggml.pre = "qwen2"` where tokenizer.json has the patterns themselves.
These are the patterns of the models' own tokenizer.json; llama.cpp has what they come to in its
engine (src/llama-vocab.cpp, `llm_tokenizer_bpe`). Each pattern cuts what the one before left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tokenizers import Regex, normalizers, pre_tokenizers

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
ANY_BEFORE = r"[^\r\n\p{L}\p{N}]?"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}{{1,3}}|{SIGNS}|{SPACES}"
QWEN2 = rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}|{SIGNS}|{SPACES}"
QWEN35 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}"
)
DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACES}"
)


def _cased(behind: str) -> str:
    """Words that begin in capitals or go on in small letters, and what may stand behind them."""
    return f"{ANY_BEFORE}{UPPER}*{LOWER}+{behind}|{ANY_BEFORE}{UPPER}+{LOWER}*{behind}"


SIGNS_AND_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
GPT4O = rf"{_cased(CONTRACTIONS + '?')}|\p{{N}}{{1,3}}|{SIGNS_AND_SLASH}|{SPACES}"
TEKKEN = rf"{_cased('')}|\p{{N}}|{SIGNS_AND_SLASH}|{SPACES}"
CJK = "[一-龥\u3040-\u309f\u30a0-\u30ff]+"
# Letters with cases, as DeepSeek LLM's tokenizer.json lists them.
CASED_LETTERS = (
    r"\s?["
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ"
    "-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK"
    "-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-"
    "𐳲𑢠-𑣟𞤀-𞥃"
    "]+"
)
DEEPSEEK_LLM = (r"[\r\n]", CASED_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$",
                "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}+")  # fmt: skip
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")
FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")
# What llama.cpp cuts by where a file doesn't say.
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")


class Words(NamedTuple):
    """Patterns one after another; what else goes with the name."""

    patterns: Sequence[str]
    nfc: bool = False  # Unicode's composed form first
    ignore_merges: bool = False  # a word that is a token is that token
    adds_bos: bool = False  # where the file doesn't say


DIGITS_APART = Words((r"\p{N}", GPT2))
LIKE_LLAMA3 = Words((LLAMA3,), ignore_merges=True, adds_bos=True)
LIKE_GPT4O = Words((GPT4O,), ignore_merges=True)
LIKE_QWEN2 = Words((QWEN2,), nfc=True)
LIKE_GPT2 = Words((GPT2,))
LIKE_DEEPSEEK3 = Words((r"\p{N}{1,3}", CJK, DEEPSEEK3))

WORDS: dict[str, Words] = {
    "default": Words(DEFAULT),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "granite-docling",
                     "trillion", "modern-bert"), LIKE_GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone",
                     "minerva-7b"), DIGITS_APART),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral",
                     "midm-2.0", "lfm2"), LIKE_LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), Words((LLAMA3,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), LIKE_QWEN2),
    **dict.fromkeys(("stablelm2", "hunyuan", "solar-open", "grok-2"), Words((QWEN2,))),
    "qwen35": Words((QWEN35,)),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), LIKE_GPT4O),
    "tekken": Words((TEKKEN,), ignore_merges=True, adds_bos=True),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), LIKE_DEEPSEEK3),
    "deepseek-llm": Words(DEEPSEEK_LLM),
    "deepseek-coder": Words(DEEPSEEK_CODER),
    "falcon": Words(FALCON),
}  # fmt: skip


def pre_tokenizer(words: Words) -> Any:
    """The `tokenizers` component: each pattern in turn, then bytes as GPT-2's letters."""
    splits = [
        pre_tokenizers.Split(Regex(pattern), "isolated", invert=False) for pattern in words.patterns
    ]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, byte_level])


def normalizer(words: Words) -> Any:
    """The `tokenizers` component, or None."""
    return normalizers.NFC() if words.nfc else None
