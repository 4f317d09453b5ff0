"""Tokens that share a character are shown as parts of it; what is no text stays bytes."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import bytes_tokenizer
from tinyllm.text.characters import escaped, parts_of_characters, unfinished
from tinyllm.tokenizer import StreamDecoder

TOKENIZER = bytes_tokenizer()


def test_a_character_is_named_in_each_of_its_parts() -> None:
    assert parts_of_characters([b"\xe4\xb8", b"\x9c"]) == ["东⟨e4b8⟩", "东⟨9c⟩"]
    assert parts_of_characters([b" \xd0", b"\xbf\xd1", b"\x80"]) == [
        " п⟨d0⟩", "п⟨bf⟩р⟨d1⟩", "р⟨80⟩",
    ]  # fmt: skip
    assert parts_of_characters(["😀".encode()[:1], "😀".encode()[1:]]) == ["😀⟨f0⟩", "😀⟨9f9880⟩"]


def test_what_never_becomes_a_character_is_bytes() -> None:
    assert parts_of_characters([b"\xe4\xb8", b"a"]) == [r"\xe4\xb8", "a"]
    assert parts_of_characters([b"a\x9c", b"\n"]) == [r"a\x9c", r"\n"]
    assert parts_of_characters([b"", b"\xff"]) == ["", r"\xff"]


def test_a_list_of_tokens_and_one_behind_others() -> None:
    ids = list("a东".encode())
    assert TOKENIZER.token_texts(ids) == ["a", "东⟨e4⟩", "东⟨b8⟩", "东⟨9c⟩"]
    assert TOKENIZER.token_texts(ids[:3]) == ["a", r"\xe4", r"\xb8"]
    before = TOKENIZER.unfinished(ids[:3])
    assert before == b"\xe4\xb8"
    assert TOKENIZER.token_text(0x9C, before) == "东⟨9c⟩"
    assert TOKENIZER.token_text(0x9D, before) == "丝⟨9d⟩"
    assert TOKENIZER.token_text(ord("!"), before) == "!"
    assert TOKENIZER.token_text(0x9C) == r"\x9c"


@given(st.text(max_size=12), st.data())
def test_however_a_text_is_cut_its_parts_are_all_there(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=6).map(sorted))
    bounds = [0, *cuts, len(raw)]
    pieces = [raw[a:b] for a, b in itertools.pairwise(bounds)]
    shown = parts_of_characters(pieces)
    whole = [text for text in shown if "⟨" not in text]
    assert len(shown) == len(pieces)
    assert "�" not in "".join(whole) or "�" in text
    if all(escaped(piece) == shown_as for piece, shown_as in zip(pieces, shown, strict=True)):
        assert "".join(shown) == escaped(raw)


@given(st.lists(st.sampled_from(b"a\x80\x9f\xa0\xbf\xc1\xc2\xe0\xe4\xed\xf0\xf4\xf5"), max_size=9))
def test_what_is_unfinished_is_what_a_stream_keeps_back(ids: list[int]) -> None:
    stream = StreamDecoder(TOKENIZER)
    told = "".join(stream.push(token) for token in ids)
    rest = unfinished(bytes(ids))
    assert bool(stream.flush()) == bool(rest)
    assert told == bytes(ids)[: len(ids) - len(rest)].decode("utf-8", "replace")
