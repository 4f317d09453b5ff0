"""Write tokenizer_ids.json: what llama.cpp's tokenizer makes of some texts.

Run llama.cpp's server on the file that the weights are converted from, then this:

    llama-server -m SmolLM2-135M-Instruct.Q4_1.gguf --port 8099
    python tests/golden/make_tokenizer_ids.py http://127.0.0.1:8099
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!",
    "  two spaces in front",
    "trailing spaces   ",
    "a\nb\n\nc\n\n\n\td",
    "\t\t\tif x:\n        return\r\n",
    # numbers: every digit is a token of its own
    "7",
    "12345",
    "3.14159",
    "1,000,000",
    "2024-11-05T12:34:56.789Z",
    "0x1F 1e-10 ½ ² Ⅷ ٣٤ 一二三",
    "v2.0.1-rc3",
    "abc123def456",
    "1 2 3  4   5",
    "100%",
    "+1 (555) 010-9999",
    # code
    "def f(x: int) -> str:\n    return f'{x!r:>10}'  # done\n",
    "for (int i = 0; i < n; ++i) { a[i] <<= 2; }",
    "SELECT * FROM t WHERE id IN (1, 2) AND name LIKE '%x_';",
    '<html><body class="a b">&nbsp;</body></html>',
    "\\frac{a}{b} \\times 10^{-3}",
    '{"key": [1, null, true], "ünï": "\\u00e9"}',
    "snake_case camelCase SCREAMING_CASE kebab-case",
    "https://example.com/a/b?c=d&e=%20#f",
    "#!/bin/sh\nset -e; echo \"$PATH\" | grep -q '^/' && exit 0",
    # contractions
    "I'm you're he's we'll they'd don't I'VE 'tis rock'n'roll",
    "it’s ‘quoted’ “text” – and — dashes…",
    # scripts
    "naïve café Ünïcödé ñandú",
    "Zażółć gęślą jaźń",
    "Привет, мир! Как дела?",
    "你好，世界！今天天气怎么样？",
    "日本語のテキスト、カタカナとひらがな",
    "안녕하세요 세계",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "Γειά σου Κόσμε",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛",
    # emoji
    "😀",
    "👩‍👩‍👧‍👦 family",
    "🏳️‍🌈🇫🇷👍🏽",
    "I ❤️ 🍕!!!",
    # odd spaces and marks
    "a\u00a0b\u2003c\u200bd\u3000e",
    "e\u0301 vs \u00e9",
    "\ufefftext with a mark in front",
    "control \u0007 \u001b[31m chars \u007f",
    "\n",
    "\n\n",
    " \n \n ",
    "x" * 100,
    "ab" * 60,
    "!?!?!?...---===***",
    "The quick brown fox jumps over the lazy dog. " * 3,
    # control tokens, as text and as themselves
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|im_start|>user\nhi<|im_end|>\n",
    "a<|im_end|>b",
    "a <|im_end|> b",
    "<|im_end|><|im_end|>",
    "<|im_end",
    "<|im_<|im_end|>end|>",
    "<repo_name>x<file_sep>y<filename>",
    "<jupyter_text> and <empty_output>",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n",
]


def tokenize(server: str, text: str, parse_special: bool) -> list[int]:
    body = {"content": text, "add_special": False, "parse_special": parse_special}
    request = urllib.request.Request(
        f"{server}/tokenize",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        tokens: list[int] = json.load(response)["tokens"]
    return tokens


def main() -> None:
    server = sys.argv[1]
    rows = [
        {
            "text": text,
            "ids": tokenize(server, text, parse_special=False),
            "ids_special": tokenize(server, text, parse_special=True),
        }
        for text in TEXTS
    ]
    path = Path(__file__).with_name("tokenizer_ids.json")
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{len(rows)} texts → {path}")


if __name__ == "__main__":
    main()
