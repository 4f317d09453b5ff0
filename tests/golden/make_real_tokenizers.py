"""Write real_tokenizers.json: what transformers makes of texts and chats with real tokenizers.

pip install transformers==5.24.0
python -m tests.golden.make_real_tokenizers
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.downloads import REAL_TOKENIZERS, real_tokenizer
from tests.golden.make_tokenizer_ids import TEXTS
from tests.text.chats import CHATS, TOOLS, with_parts, with_strings

# Letters that tokenizers treat apart: cases, digits, marks, spaces of all kinds, scripts, emoji.
LETTERS = "abcXYZ  \n\t\r019.,'’-_<>/|▁éßжш你好ا́\u00a0\u3000\u200d😀👍🏽🇫🇷"


def random_texts(n: int = 400) -> list[str]:
    """Strings of up to 30 letters, the same in every run."""
    source = random.Random(13)
    return ["".join(source.choices(LETTERS, k=source.randrange(1, 30))) for _ in range(n)]


def digest(value: object) -> str:
    """A short fingerprint of JSON-like data."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def ways_to_ask() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Label, name of a chat, and what is passed to the template with it."""
    for name in CHATS:
        for tools in (None, TOOLS):
            for thinking in (None, True, False):
                extra = {} if thinking is None else {"enable_thinking": thinking}
                yield f"{name}, {bool(tools)}, {thinking}", name, {"tools": tools, **extra}


def rendered(tokenizer: Any, name: str, options: dict[str, Any]) -> str | None:
    """The reference's text, in the first form of content that the template takes; None: in none."""
    for form in (CHATS[name], with_strings(CHATS[name]), with_parts(CHATS[name])):
        try:
            text: str = tokenizer.apply_chat_template(
                form, tokenize=False, add_generation_prompt=True, **options
            )
        except Exception:  # whatever a template does with a form that it wasn't written for
            continue
        if "{'type': 'text'" not in text:  # Python's way to write a list that was taken for a text
            return text
    return None


def facts(tokenizer: Any, added: Sequence[int]) -> dict[str, Any]:
    texts = [*TEXTS, *random_texts()]
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    plain = {"clean_up_tokenization_spaces": False}
    made: dict[str, Any] = {
        "bos": tokenizer.encode("a")[: -len(tokenizer.encode("a", add_special_tokens=False))],
        "some ids": dict(zip(TEXTS[:20], ids, strict=False)),
        "ids": digest(ids),
        "texts": digest([tokenizer.decode(row, **plain) for row in ids]),
        "added": digest([tokenizer.decode([id], **plain) for id in added]),
    }
    if tokenizer.chat_template:
        chats = {label: rendered(tokenizer, name, opts) for label, name, opts in ways_to_ask()}
        made["chats"] = chats
        made["chat ids"] = {
            label: digest(tokenizer.encode(text, add_special_tokens=False))
            for label, text in chats.items()
            if text is not None
        }
    return made


def main() -> None:
    from transformers import PreTrainedTokenizerFast

    golden = {}
    for name in REAL_TOKENIZERS:
        folder = real_tokenizer(name)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        added = sorted(tokenizer.backend_tokenizer.get_added_tokens_decoder())
        golden[name] = facts(tokenizer, added)
    path = Path(__file__).with_name("real_tokenizers.json")
    path.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(golden)} tokenizers → {path}")


if __name__ == "__main__":
    main()
