"""The prompts that logits are compared on: 1 to 1,500 tokens of prose, digits, code, chat, noise.

Control tokens are written out in the texts; `token_ids` reads them as such.
"""

from __future__ import annotations

import random
from pathlib import Path

import tokenizers

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n"

STORY = """\
The keeper of the lighthouse had a habit of counting ships. In the first year he counted four \
hundred and twelve, in the second three hundred and ninety, and after that he stopped writing the \
numbers down, because the book was full and the shop on the mainland had closed. He counted all \
the same. A fishing boat was one. A ferry was one. A raft of timber, with a boy asleep on top of \
it, was argued over for an evening and came out as one and a half.

On the longest night of the winter the lamp went out. It did not flicker first, as lamps do in \
stories; it simply stopped, and the stairs went dark below his feet. He knew the way. There were \
two hundred and eight steps, and a loose one at the turn, and he had the spare mantle in his coat \
before he had thought about it. But at the top he found the lamp burning as it always had, and a \
woman he did not know trimming the wick with a pair of silver scissors.

"You are late," she said. "There were nine of them tonight, and you have only counted eight."
"""

CODE = '''\
from collections import deque


def shortest_path(grid: list[str], start: tuple[int, int], goal: tuple[int, int]) -> int | None:
    """Steps from start to goal over '.' cells, or None if there is no way."""
    queue = deque([(start, 0)])
    seen = {start}
    while queue:
        (row, col), steps = queue.popleft()
        if (row, col) == goal:
            return steps
        for d_row, d_col in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            place = (row + d_row, col + d_col)
            inside = 0 <= place[0] < len(grid) and 0 <= place[1] < len(grid[0])
            if inside and place not in seen and grid[place[0]][place[1]] == ".":
                seen.add(place)
                queue.append((place, steps + 1))
    return None


def test_shortest_path():
'''

SCRIPTS = """\
Grüße aus Köln! Ça va, où es-tu ? El niño comió piñones. Zażółć gęślą jaźń. \
Привет, как дела? Γειά σου Κόσμε. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया। \
你好，世界。今日は良い天気ですね。\
안녕하세요 세계. 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 e\u0301 ﬁ \u200b∑∫√ ½ → ∞"""


def chat(*turns: str) -> str:
    """User and assistant turns, one after the other, ending where the assistant speaks."""
    roles = ("user", "assistant")
    text = "".join(
        f"<|im_start|>{roles[i % 2]}\n{turn}<|im_end|>\n" for i, turn in enumerate(turns)
    )
    return SYSTEM + text + "<|im_start|>assistant\n"


def ledger(n_lines: int) -> str:
    """Dates and sums: nothing but digits to get wrong."""
    rng = random.Random(1)
    lines = [
        f"{2001 + i // 12}-{i % 12 + 1:02d}-{rng.randint(1, 28):02d},"
        f"{rng.choice(('rent', 'wine', 'salt', 'rope', 'oil'))},"
        f"{rng.randint(-99999, 99999) / 100:.2f}"
        for i in range(n_lines)
    ]
    return "date,item,amount\n" + "\n".join(lines) + "\n"


def diary(n_days: int) -> str:
    """Prose of any length that never quite repeats."""
    rng = random.Random(2)
    who = ("the keeper", "my sister", "a stranger", "the baker", "old Tom", "the captain's cat")
    did = ("mended a net", "lost a coin", "sang until dark", "asked for bread", "saw a whale",
           "painted the door", "read me a letter", "broke the good jug")  # fmt: skip
    where = ("by the harbour", "under the stairs", "on the ferry", "in the rain", "behind the mill")
    sky = ("Clear and cold", "Fog all morning", "A gale from the west", "Warm for the season")
    days = [
        f"Day {i + 1}. {rng.choice(sky)}. {rng.choice(who).capitalize()} {rng.choice(did)} "
        f"{rng.choice(where)}, and {rng.choice(who)} {rng.choice(did)}."
        for i in range(n_days)
    ]
    return "\n".join(days) + "\n"


def conversation(n_turns: int) -> str:
    """A long chat in which every answer refers to its question."""
    rng = random.Random(3)
    turns = []
    for i in range(n_turns):
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        turns += [
            f"Question {i + 1}: what is {a} times {b}?",
            f"{a} times {b} is {a * b}. The larger of the two numbers is {max(a, b)}.",
        ]
    return chat(*turns, "Which of the numbers I asked about was the largest, and why?")


# name → (text, tokens to cut it to; None keeps all)
PROMPTS: dict[str, tuple[str, int | None]] = {
    "one token": ("The", 1),
    "one control token": ("<|im_start|>", 1),
    "two tokens": ("Once upon", 2),
    "newline and spaces": ("\n\n        \t\n ", None),
    "question": ("The capital of France is", None),
    "digits": ("3.14159265358979323846264338327950288419716939937510", None),
    "sum": ("12345 + 67890 = 80235\n99999 + 1 =", None),
    "json": ('{"id": 17, "tags": ["a", "b"], "nested": {"pi": 3.14, "ok": true}, "name": "', None),
    "emoji": ("🙂🙃🙂🙃 means", None),
    "chinese": ("从前有一座山，山里有一座庙，庙里有一个老和尚", None),
    "scripts": (SCRIPTS, None),
    "chat, default turn": (chat("What is the capital of France?"), None),
    "chat, two turns": (
        chat("Name a fruit.", "An apple.", "Another one, and a poem of two lines about it."),
        None,
    ),
    "repetition": ("la " * 96, None),
    "code": (CODE, None),
    "story": (STORY, None),
    "ledger, 384 tokens": (ledger(60), 384),
    "diary, 499 tokens": (diary(60), 499),
    "noise, 500 tokens": ("", 500),
    "chat, 500 tokens": (conversation(20), 500),
    "story and code, 700 tokens": (STORY + CODE + STORY + CODE, 700),
    "ledger, 1000 tokens": (ledger(120), 1000),
    "noise, 1250 tokens": ("", 1250),
    "conversation, 1400 tokens": (conversation(60), 1400),
    "diary, 1500 tokens": (diary(120), 1500),
    "scripts, 1500 tokens": (SCRIPTS * 20, 1500),
}


def token_ids(folder: Path) -> dict[str, list[int]]:
    """Each prompt's ids; `folder` holds tokenizer.json. "noise" is uniform over the vocabulary."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids: dict[str, list[int]] = {}
    for name, (text, length) in PROMPTS.items():
        if name.startswith("noise"):
            rng = random.Random(name)
            ids[name] = [rng.randrange(tokenizer.get_vocab_size()) for _ in range(length or 0)]
            continue
        ids[name] = tokenizer.encode(text, add_special_tokens=False).ids[:length]
        if length is not None and len(ids[name]) != length:
            raise ValueError(f"prompt {name!r} has {len(ids[name])} tokens, not {length}")
    return ids
