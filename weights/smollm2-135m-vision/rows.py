"""The trained rows around a caption: what makes the language model answer from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from answers import Example
from torch import Tensor, nn
from torch.nn import functional

from tinyllm.tokenizer import Tokenizer

CAPTION_ROWS = 28  # the longest caption of two things takes 26
IMAGE = "\x00"  # where the image's rows go in a rendered chat; nobody types it
# What the rows start as: this text's embeddings.
BEFORE = "I look at a picture and answer only with what it shows, briefly and completely. It shows"
AFTER = "\n"


class Rows(nn.Module):
    """The rows before a caption, behind it, and those that fill it up."""

    def __init__(self, table: Tensor, tokenizer: Tokenizer) -> None:
        super().__init__()
        start = table.float()
        self.before = nn.Parameter(start[tokenizer.encode(BEFORE)].clone())
        self.after = nn.Parameter(start[tokenizer.encode(AFTER)].clone())
        self.pad = nn.Parameter(start[tokenizer.encode("\n")].clone())

    @property
    def n_rows(self) -> int:
        """Rows that an image takes."""
        return len(self.before) + CAPTION_ROWS + len(self.after)

    def forward(self, words: Tensor) -> Tensor:
        """A caption's embeddings, (T, dim) → (n_rows, dim)."""
        pad = self.pad.expand(CAPTION_ROWS - len(words), -1)
        return torch.cat([pad, self.before, words, self.after])


def embedded(
    lm: Any, tokenizer: Tokenizer, rows: Rows, examples: Sequence[Example]
) -> tuple[Tensor, Tensor]:
    """Conversations as embeddings, (B, T, dim), and labels (B, T), -100 but for the answers."""
    table = lm.get_input_embeddings().weight
    end = tokenizer.special_tokens["<|im_end|>"]
    sequences, labels = [], []
    for one in examples:
        chat = [{"role": "system", "content": one.system}] if one.system else []
        for role, pieces in one.turns:
            text = "".join(IMAGE if piece is None else piece for piece in pieces)
            chat.append({"role": role, "content": text})
        texts = tokenizer.render_chat(chat).split(IMAGE)
        captions = iter(one.captions)
        parts = []
        for number, text in enumerate(texts):
            if number:
                ids = tokenizer.encode(" " + next(captions))[:CAPTION_ROWS]
                parts.append(rows(table[ids].float()))
            parts.append(table[tokenizer.encode(text, allow_special=True)].float())
        answer = [*tokenizer.encode(one.answer), end]
        prompt = torch.cat(parts)
        sequences.append(torch.cat([prompt, table[answer].float()]))
        labels.append(torch.tensor([-100] * len(prompt) + answer))
    return (
        nn.utils.rnn.pad_sequence(sequences, batch_first=True),
        nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
    )


def loss_of(lm: Any, embeddings: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of the answers' tokens; what is no answer gets no logits."""
    hidden = lm.model(inputs_embeds=embeddings.to(lm.dtype)).last_hidden_state
    wanted = labels[:, 1:]
    chosen = wanted != -100
    logits = lm.lm_head(hidden[:, :-1][chosen]).float()
    return functional.cross_entropy(logits, wanted[chosen])
