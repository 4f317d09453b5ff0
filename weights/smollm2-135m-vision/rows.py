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
AFTER = "\nI answer just what is asked:"


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
) -> list[tuple[Tensor, Tensor]]:
    """Conversations as embeddings (T, dim) and labels (T,), -100 but for the answers."""
    table = lm.get_input_embeddings().weight
    end = tokenizer.special_tokens["<|im_end|>"]
    found = []
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
        labels = torch.tensor([-100] * len(prompt) + answer)
        found.append((torch.cat([prompt, table[answer].float()]), labels))
    return found


def loss_of(lm: Any, conversations: Sequence[tuple[Tensor, Tensor]], together: int = 2) -> Tensor:
    """Mean cross entropy of the answers' tokens; what is no answer gets no logits.

    Those of about one length go through the model together: filling up costs time.
    """
    by_length = sorted(conversations, key=lambda pair: len(pair[1]))
    loss, n = torch.zeros(()), 0
    for start in range(0, len(by_length), together):
        embeddings, labels = zip(*by_length[start : start + together], strict=True)
        padded = nn.utils.rnn.pad_sequence(embeddings, batch_first=True).to(lm.dtype)
        wanted = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)[:, 1:]
        chosen = wanted != -100
        hidden = lm.model(inputs_embeds=padded).last_hidden_state[:, :-1]
        logits = lm.lm_head(hidden[chosen]).float()
        loss = loss + functional.cross_entropy(logits, wanted[chosen], reduction="sum")
        n += int(chosen.sum())
    return loss / n
