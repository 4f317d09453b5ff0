"""Text and tokens: golden ids, round trips, and control tokens that nobody can forge."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from tinyllm.errors import TokenizerError
from tinyllm.tokenizer import StreamDecoder, Tokenizer

GOLDEN = json.loads((Path(__file__).parent / "golden" / "tokenizer_ids.json").read_text("utf-8"))


@pytest.fixture(scope="session")
def smollm(weights_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(weights_folder)


# -- other families, in small ----------------------------------------------------------------------


def sentencepiece(*, legacy: bool) -> tokenizers.Tokenizer:
    """As Llama 2's: BPE over text with ▁ for spaces, stray bytes as <0x..>."""
    vocab = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    vocab += [*"▁abcdehijlmnorstuw</>|[]", "he", "ll", "hell", "hello", "▁w", "▁hello"]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "w"), ("▁", "hello")]
    # Some converted vocabularies have merges that spell a control token out.
    vocab += ["</", "s>"]
    merges += [("<", "/"), ("s", ">"), ("</", "s>")]
    backend = tokenizers.Tokenizer(
        models.BPE({t: i for i, t in enumerate(vocab)}, merges, unk_token="<unk>",
                   fuse_unk=True, byte_fallback=True)
    )  # fmt: skip
    if legacy:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
             decoders.Strip(" ", 1, 0)]
        )  # fmt: skip
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
        backend.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace("▁", "first")]
        )
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")]
    )
    return backend


def llama3() -> tokenizers.Tokenizer:
    """As Llama 3's: byte level, and control tokens beyond the vocabulary, some that overlap."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate([*letters, "he", "Ġw"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [("h", "e"), ("Ġ", "w")], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [
            AddedToken("<|a|>", special=True, normalized=False),
            AddedToken("<|a|>x", special=True, normalized=False),
            AddedToken("‖", special=True, normalized=False),
            AddedToken("<trim>", special=True, normalized=False, lstrip=True, rstrip=True),
        ]
    )
    backend.add_tokens([AddedToken("<think>", normalized=False)])  # a word like any other
    return backend


def small_smollm() -> tokenizers.Tokenizer:
    """A few bytes' worth of the default model's tokenizer, with all its control tokens."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>"]
    names += ["<file_sep>", "<filename>", "<jupyter_text>"]
    vocab = {t: i for i, t in enumerate([*names, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in names])
    return backend


BACKENDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "llama2": lambda: sentencepiece(legacy=True),
    "metaspace": lambda: sentencepiece(legacy=False),
    "llama3": llama3,
    "smollm": small_smollm,
}


@functools.cache
def build(name: str, template: str | None = None) -> Tokenizer:
    return Tokenizer(BACKENDS[name](), chat_templates={"default": template} if template else None)


each_family = pytest.mark.parametrize("family", BACKENDS)


# -- encode ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", GOLDEN, ids=[ascii(row["text"])[:40] for row in GOLDEN])
def test_ids_are_llama_cpps(smollm: Tokenizer, row: dict[str, Any]) -> None:
    assert smollm.encode(row["text"]) == row["ids"]
    assert smollm.encode(row["text"], allow_special=True) == row["ids_special"]


def test_what_the_folder_says(smollm: Tokenizer) -> None:
    assert smollm.vocab_size == 49152
    assert smollm.eos_ids == (2,)
    assert len(smollm.special_tokens) == 17
    assert smollm.special_tokens["<|im_start|>"] == 1
    assert smollm.chat_template is not None


def test_a_typed_control_token_is_text(smollm: Tokenizer) -> None:
    control = set(smollm.special_tokens.values())
    for text, id in smollm.special_tokens.items():
        ids = smollm.encode(f"a{text}b")
        assert not control & set(ids)
        assert smollm.decode(ids) == f"a{text}b"
        assert smollm.encode(text, allow_special=True) == [id]


@each_family
def test_no_family_reads_typed_control_tokens(family: str) -> None:
    tokenizer = build(family)
    control = set(tokenizer.special_tokens.values())
    for text in (*tokenizer.special_tokens, "".join(tokenizer.special_tokens), "hello</s>hello"):
        ids = tokenizer.encode(text)
        assert not control & set(ids)
        assert tokenizer.decode(ids) == text
    for special, id in tokenizer.special_tokens.items():
        assert id in tokenizer.encode(f"x{special}y", allow_special=True) or special == "<|a|>"


@each_family
@given(text=st.text(max_size=40))
def test_plain_text_as_the_library_encodes_it(family: str, text: str) -> None:
    tokenizer = build(family)
    if not any(special in text for special in tokenizer.special_tokens):
        expected = BACKENDS[family]().encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == tokenizer.encode(text, allow_special=True) == expected


def test_added_words_that_are_no_control_tokens() -> None:
    tokenizer = build("llama3", "<|a|>{{ messages[0].content }}")
    think = tokenizer.vocab_size - 1
    assert tokenizer.encode("a<think>b")[1] == think
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "<think>"}])
    assert ids == [tokenizer.special_tokens["<|a|>"], think]
    assert tokenizer.decode(ids) == "<|a|><think>"


def test_not_unicode(smollm: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="surrogate pair at position 2"):
        smollm.encode("ab\ud83d")
    with pytest.raises(TokenizerError, match="surrogate"):
        smollm.apply_chat_template([{"role": "user", "content": "\udc00"}])


# -- decode ----------------------------------------------------------------------------------------

# The vocabulary leaves out a few bytes: control characters, and lead bytes of code points from
# U+40000, none of which is assigned. Such characters are dropped, by the reference as well.
MISSING = "\x04\x06\x13\x14\x16\x1d"
typable = st.text(st.characters(exclude_categories=["Cs"], max_codepoint=0x3FFFF).filter(
    lambda c: c not in MISSING))  # fmt: skip


@given(text=typable)
@example("👩‍👩‍👧‍👦 1024 <|im_end|> \u200d\ufeff")
@settings(max_examples=200)
def test_round_trip(smollm: Tokenizer, text: str) -> None:
    assert smollm.decode(smollm.encode(text)) == text


@each_family
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
@example(" hello  world")
@example("")
def test_round_trip_of_every_family(family: str, text: str) -> None:
    tokenizer = build(family)
    ids = tokenizer.encode(text)
    decoded = tokenizer.decode(ids)
    assert decoded == text or (family == "metaspace" and decoded == text.removeprefix(" "))
    library = BACKENDS[family]().decode(ids, skip_special_tokens=False)
    assert decoded == library


@each_family
@given(data=st.data())
def test_decode_is_the_librarys_on_whole_characters(family: str, data: st.DataObject) -> None:
    backend = BACKENDS[family]()
    tokenizer = build(family)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12))
    raw = b"".join(map(tokenizer.token_bytes, ids))
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        assert "\ufffd" in tokenizer.decode(ids)  # how many of them is the library's own business
    else:
        if not any(tokenizer.token_bytes(id) == "‖".encode() for id in ids):
            assert tokenizer.decode(ids) == backend.decode(ids, skip_special_tokens=False)
        control = set(tokenizer.special_tokens.values())
        kept = [id for id in ids if id not in control]
        assert tokenizer.decode(ids, skip_special=True) == tokenizer.decode(kept)


@given(ids=st.lists(st.integers(0, 49151), max_size=20))
@example([])
@settings(max_examples=300)
def test_the_stream_gives_the_whole(smollm: Tokenizer, ids: list[int]) -> None:
    stream = StreamDecoder(smollm)
    pieces = [stream.push(id) for id in ids]
    pieces.append(stream.flush())
    raw = b"".join(map(smollm.token_bytes, ids))
    assert "".join(pieces) == raw.decode("utf-8", errors="replace") == smollm.decode(ids)
    assert stream.flush() == ""


@given(raw=st.binary(max_size=24) | st.text(max_size=8).map(lambda t: t.encode("utf-8")[:-1]))
@example(b"\xf0\x9f\x98")
@example(b"\xf0\x9f\xf0\x9f\x98\x80\xff\xc3")
def test_byte_by_byte_streams_of_sentencepiece(raw: bytes) -> None:
    tokenizer = build("llama2")
    byte_ids = [tokenizer._full.token_to_id(f"<0x{b:02X}>") for b in raw]
    assert [tokenizer.token_bytes(id) for id in byte_ids] == [bytes([b]) for b in raw]
    stream = StreamDecoder(tokenizer)
    text = "".join(stream.push(id) for id in byte_ids) + stream.flush()
    assert text == raw.decode("utf-8", errors="replace")


def test_an_emoji_comes_whole(smollm: Tokenizer) -> None:
    ids = smollm.encode("😀!")
    assert len(ids) > 2
    stream = StreamDecoder(smollm)
    assert [stream.push(id) for id in ids] == [""] * (len(ids) - 2) + ["😀", "!"]
    stream = StreamDecoder(smollm)
    assert [stream.push(id) for id in ids[:-2]] == [""] * (len(ids) - 2)
    assert stream.flush() == "\ufffd"  # once, though several bytes are left


def test_the_space_in_front(smollm: Tokenizer) -> None:
    tokenizer = build("llama2")
    (hello,) = tokenizer.encode("hello")
    assert tokenizer.token_bytes(hello) == b" hello"
    assert tokenizer.decode([hello]) == "hello"
    assert StreamDecoder(tokenizer).push(hello) == " hello"
    assert smollm.decode(smollm.encode(" hello")) == " hello"


def test_token_text(smollm: Tokenizer) -> None:
    assert [smollm.token_text(id) for id in smollm.encode(" a\n")] == [" a", "\\n"]
    assert smollm.token_text(2) == "<|im_end|>"
    assert all("\\x" in smollm.token_text(id) for id in smollm.encode("😀")[:1])
    assert smollm.token_text(smollm.encode("\t")[0]) == "\\t"


def test_ids_that_no_token_has(smollm: Tokenizer) -> None:
    assert smollm.token_bytes(10**6) == b""
    assert smollm.token_bytes(-1) == b""
    assert smollm.decode([10**6, 5]) == smollm.decode([5])


def test_overlapping_added_text_is_not_byte_level() -> None:
    assert build("llama3").token_bytes(build("llama3").special_tokens["‖"]) == "‖".encode()


# -- chat ------------------------------------------------------------------------------------------


def test_the_default_system_prompt(smollm: Tokenizer) -> None:
    text = smollm.render_chat([{"role": "user", "content": "Hi"}])
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = smollm.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert ids == smollm.encode(text, allow_special=True)
    own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert "SmolLM" not in smollm.render_chat(own)
    assert not smollm.render_chat(own, add_generation_prompt=False).endswith("assistant\n")


def chat(*contents: str) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


@given(contents=st.lists(typable, min_size=1, max_size=4))
@example(["1024 tokens, 你好 😀\n\n  x  "])
@settings(max_examples=150)
def test_ids_of_a_chat_as_if_encoded_whole(smollm: Tokenizer, contents: list[str]) -> None:
    if not any(special in content for special in smollm.special_tokens for content in contents):
        messages = chat(*contents)
        whole = smollm.encode(smollm.render_chat(messages), allow_special=True)
        assert smollm.apply_chat_template(messages) == whole


pieces = st.sampled_from(
    ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|im_", "end|>", "|>", "<", "<|", "im_end",
     "im_start", ">", "\n", "system", " ", "a", "<repo_name>", "text", "name", "jupyter", "\ue000"]
)  # fmt: skip


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@given(parts=st.lists(st.lists(pieces, max_size=6), min_size=1, max_size=3))
@settings(max_examples=300)
def test_no_content_forges_a_turn(parts: list[list[str]]) -> None:
    """Whatever is typed: the control tokens are the template's, and the text is all there."""
    smollm = build("smollm", CHATML)
    messages = chat(*("".join(part) for part in parts))
    ids = smollm.apply_chat_template(messages)
    harmless = smollm.apply_chat_template(chat(*("x" for _ in parts)))
    control = set(smollm.special_tokens.values())
    assert [id for id in ids if id in control] == [id for id in harmless if id in control]
    assert smollm.decode(ids) == smollm.render_chat(messages)
    for message in messages:
        assert f"{message['role']}\n{message['content']}<|im_end|>" in smollm.decode(ids)


GLUE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ '<|' + m.content + '|>' }}<{{ m.content | trim }}"
    "|im_end|>{{ m.content }}<|im_{{ m.content }}<|im_{{ m.content | trim }}{% endfor %}"
)


@pytest.mark.parametrize(
    "content",
    [
        "im_end",
        "im_start",
        " im_end ",
        "|im_end",
        "<|im_end|>",
        "<|im_end",
        "end|>",
        "end|> x",
        " end|> x",
    ],
)
def test_template_and_text_cannot_be_glued_into_one(content: str) -> None:
    tokenizer = build("smollm", GLUE)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": content}])
    assert not set(ids) & set(tokenizer.special_tokens.values())
    assert tokenizer.decode(ids) == tokenizer.render_chat([{"role": "user", "content": content}])


def test_a_template_may_build_a_control_token_from_the_role() -> None:
    backend = llama3()
    backend.add_special_tokens([AddedToken("<|user|>", special=True, normalized=False)])
    template = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    template += "{# or 'a', which a template that names it may be given #}"
    tokenizer = Tokenizer(backend, chat_templates={"default": template})
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "<|user|>"}])
    assert ids.count(tokenizer.special_tokens["<|user|>"]) == 1
    forged = tokenizer.apply_chat_template([{"role": "a", "content": ""}])
    assert not set(forged) & set(tokenizer.special_tokens.values())


@each_family
@given(data=st.data())
@settings(max_examples=40)
def test_chats_of_every_family(family: str, data: st.DataObject) -> None:
    """Same ids as encoding the rendered text whole, wherever nobody typed a control token."""
    name = (
        "</s>" if family != "llama3" else data.draw(st.sampled_from(["<|a|>", "<trim>", "<|a|>x"]))
    )
    template = f"{{% for m in messages %}}{{{{ m.content }}}}{name} {{% endfor %}}"
    tokenizer = build(family, template)
    typed = st.text(st.sampled_from("helo wax▁<>|é"), max_size=12)
    contents = data.draw(st.lists(typed, min_size=1, max_size=3))
    messages = chat(*contents)
    text = tokenizer.render_chat(messages)
    if text.count("<") == len(contents) and not any("x" in c for c in contents):
        assert tokenizer.apply_chat_template(messages) == tokenizer.encode(text, allow_special=True)


def test_overlapping_control_tokens_of_a_template() -> None:
    tokenizer = build("llama3", "<|a|>x{{ messages[0].content }}‖<|a|>")
    special = tokenizer.special_tokens
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "‖x<|a|>x"}])
    assert ids[0] == special["<|a|>x"]
    assert ids[-2:] == [special["‖"], special["<|a|>"]]
    assert not set(ids[1:-2]) & set(special.values())
    assert tokenizer.decode(ids) == "<|a|>x‖x<|a|>x‖<|a|>"
    # "<|a|>" of the template and "x" of the user are no "<|a|>x".
    tokenizer = build("llama3", "<|a|>{{ messages[0].content }}")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "x"}])
    assert ids[0] == special["<|a|>"]


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "im_end",
            "description": "A <|im_end|> tool & <b>\n",
            "parameters": {
                "type": "object",
                "properties": {"<|im_start|>": {"type": "<|im_end|>", "description": "text"}},
            },
        },
    }
]


@pytest.mark.parametrize("options", ["", "(indent=2)", "(ensure_ascii=true)", "(sort_keys=true)"])
def test_tools_cannot_forge_either(options: str) -> None:
    template = (
        "{% for tool in tools if tool.type == 'function' %}{{ tool | tojson" + options + " }}"
        "{{ tool.function.name }}{% endfor %}{{ messages[0].content }}<|im_end|>"
    )
    tokenizer = build("smollm", template)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "é<|im_end|>"}], tools=TOOLS)
    assert [id for id in ids if id in set(tokenizer.special_tokens.values())] == [2]
    text = tokenizer.decode(ids)
    assert json.loads(text.split("}im_end")[0] + "}") == TOOLS[0]
    assert text.endswith("im_endé<|im_end|><|im_end|>")


def test_arguments_become_objects() -> None:
    template = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments.a }};"
        "{{ c.function.arguments | tojson }}{% endfor %}{{ m.content }}{% endfor %}"
    )
    tokenizer = build("llama3", template)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "<|a|>"}'}}
    messages = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    assert tokenizer.render_chat(messages) == '<|a|>;{"a": "<|a|>"}'
    assert not set(tokenizer.apply_chat_template(messages)) & set(tokenizer.special_tokens.values())
    assert isinstance(call["function"]["arguments"], str)  # type: ignore[index]  # the caller's stays


def test_a_turn_of_calls_without_content() -> None:
    """DeepSeek R1's distills know it by a null; other templates would write "None" for one."""
    by_null = (
        "{% for m in messages %}{% if m.content is none %}{% for c in m.tool_calls %}"
        "{{ c.function.name }}{% endfor %}{% else %}{{ m.content + '!' }}{% endif %}{% endfor %}"
    )
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert build("llama3", by_null).render_chat([turn]) == "f"
    with pytest.raises(TokenizerError, match="refuses"):
        build("llama3", by_null).render_chat([{"role": "assistant", "content": None}])
    plain = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    assert build("llama3", plain).render_chat([turn]) == "[]"


PARTS = [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "<|a|>"}]


def test_parts_become_one_string() -> None:
    tokenizer = build("llama3", "{{ messages[0].content }}")
    text_only = [{"role": "user", "content": [PARTS[0], PARTS[2]]}]
    assert tokenizer.render_chat(text_only) == "a\n<|a|>"
    with pytest.raises(TokenizerError, match="type 'image_url'"):
        tokenizer.render_chat([{"role": "user", "content": PARTS}])
    messages = [{"role": "user", "content": PARTS}]
    image = tokenizer.special_tokens["‖"]
    ids = tokenizer.apply_chat_template(messages, image_token="‖")
    assert tokenizer.decode(ids) == "a\n‖\n<|a|>"
    assert [id for id in ids if id in set(tokenizer.special_tokens.values())] == [image]
    with pytest.raises(TokenizerError, match="no control token"):
        tokenizer.apply_chat_template(messages, image_token="<image>")


def test_a_template_that_takes_parts_gets_them() -> None:
    template = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{% if p.type == 'text' %}[{{ p.text }}]{% endif %}{% endfor %}"
        "{% endif %}{% endfor %}"
    )
    messages = [{"role": "user", "content": [PARTS[0], PARTS[2]]}]
    assert build("llama3", template).render_chat(messages) == "[a][<|a|>]"
    assert build("llama3", template).render_chat(chat("text")) == "text"


def test_a_template_of_parts_alone_gets_strings_as_one_part() -> None:
    template = (
        "{% for m in messages %}{% for p in m['content'] %}[{{ p.text }}]{% endfor %}{% endfor %}"
    )
    assert build("llama3", template).render_chat(chat("text")) == "[text]"


def test_what_published_templates_use() -> None:
    template = (
        "{%- for m in messages %}\n    {%- if loop.index == 2 %}{% continue %}{% endif %}\n"
        "    {%- if loop.index == 4 %}{% break %}{% endif %}\n"
        "    {%- generation %}{{ m.content }},{% endgeneration %}\n{%- endfor %}\n"
        "{{- strftime_now('%Y') | length }}{{ think }}{{ bos_token }}\n"
    )
    tokenizer = Tokenizer(
        llama3(), chat_templates={"default": template}, named_tokens={"bos_token": "<|a|>"}
    )
    text = tokenizer.render_chat(chat("1", "2", "3", "4"), think="<|a|>")
    assert text == "1,3,4<|a|><|a|>"
    ids = tokenizer.apply_chat_template(chat("1", "2", "3", "4"), think="<|a|>")
    assert ids.count(tokenizer.special_tokens["<|a|>"]) == 1  # bos_token, not the caller's word


def test_templates_that_refuse_or_misbehave() -> None:
    def render(template: str) -> str:
        return build("llama3", template).render_chat(chat("hi"))

    with pytest.raises(TokenizerError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(TokenizerError, match="refuses these messages"):
        render("{{ messages[0].content + 1 }}")
    with pytest.raises(TokenizerError, match="not valid Jinja"):
        render("{% for %}")
    with pytest.raises(TokenizerError, match="refuses"):
        render("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(TokenizerError, match="refuses"):
        render("{% set _ = messages.append(1) %}")
    with pytest.raises(TokenizerError, match="no chat template"):
        build("llama3").render_chat(chat("hi"))


# -- the folder ------------------------------------------------------------------------------------


def folder_with(path: Path, **files: object) -> Path:
    llama3().save(str(path / "tokenizer.json"))
    for name, content in files.items():
        target = path / name.replace("__", ".")
        target.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_template_in_its_own_file(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path, chat_template__jinja="own", tokenizer_config__json={"chat_template": "inside"}
    )
    assert Tokenizer.from_folder(folder).chat_template == "own"


def test_template_in_a_processors_file(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path,
        chat_template__json={"chat_template": "own"},
        tokenizer_config__json={"chat_template": "inside"},
    )
    assert Tokenizer.from_folder(folder).chat_template == "own"


def test_several_templates(tmp_path: Path) -> None:
    templates = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "with tools"},
    ]
    folder = folder_with(tmp_path, tokenizer_config__json={"chat_template": templates})
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.render_chat(chat("x")) == "plain"
    assert tokenizer.render_chat(chat("x"), tools=TOOLS) == "with tools"


def test_ends_of_an_answer_come_from_all_files(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path,
        config__json={"eos_token_id": 3},
        generation_config__json={"eos_token_id": [3, 5]},
        tokenizer_config__json={"eos_token": {"content": "<|a|>"}},
    )
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.eos_ids == tuple(sorted({3, 5, tokenizer.special_tokens["<|a|>"]}))


def test_broken_folders(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is missing"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_folder(tmp_path)
    raw = json.loads(small_smollm().to_str())
    raw["model"]["merges"] = [["a", "b"]]
    raw["model"]["continuing_subword_prefix"] = "longer than b"  # makes the library panic
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_folder(tmp_path)
    folder_with(tmp_path, tokenizer_config__json="[1]")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json should hold a JSON object"):
        Tokenizer.from_folder(tmp_path)
    folder_with(tmp_path, tokenizer_config__json="nonsense")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json is not readable JSON"):
        Tokenizer.from_folder(tmp_path)


def test_a_decoder_of_another_kind(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="WordPiece"):
        Tokenizer.from_folder(tmp_path)


# -- against the reference implementation ----------------------------------------------------------

CHATS = [
    chat("Hi"),
    chat("1024 + 77 = ?", "1101", "And 3.5e-2?"),
    [
        {"role": "system", "content": "Be brief."},
        *chat("你好 👩‍👩‍👧‍👦", "  \n\n", "x = [1,2]\n\tpass"),
    ],
    [{"role": "system", "content": ""}],
    chat(""),
]


@pytest.mark.reference
@pytest.mark.parametrize("prompted", [True, False])
def test_chats_as_the_reference_encodes_them(
    smollm: Tokenizer, weights_folder: Path, prompted: bool
) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(weights_folder)
    for messages in CHATS:
        text = reference.apply_chat_template(
            messages, add_generation_prompt=prompted, tokenize=False
        )
        assert smollm.render_chat(messages, add_generation_prompt=prompted) == text
        expected = reference(text, add_special_tokens=False)["input_ids"]
        assert smollm.apply_chat_template(messages, add_generation_prompt=prompted) == expected
        assert smollm.decode(expected) == reference.decode(
            expected, clean_up_tokenization_spaces=False
        )


# -- what goes in front of a text, and what ends an answer -----------------------------------------


def test_a_text_gets_its_bos_where_the_tokenizer_adds_one(smollm: Tokenizer) -> None:
    assert smollm.bos_ids == ()
    assert smollm.encode_prompt("Hi") == smollm.encode("Hi")
    backend = llama3()
    bos = backend.token_to_id("<|a|>")
    backend.post_processor = processors.TemplateProcessing(
        single="<|a|> $A ‖", special_tokens=[("<|a|>", bos), ("‖", backend.token_to_id("‖"))]
    )
    tokenizer = Tokenizer(backend, chat_templates={"default": "{{ messages[0].content }}"})
    assert tokenizer.bos_ids == (bos,)
    assert tokenizer.encode_prompt("hehe") == [bos, *tokenizer.encode("hehe")]
    assert tokenizer.apply_chat_template(chat("he")) == tokenizer.encode("he")  # the template's own


def test_ends_of_a_turn_by_name(tmp_path: Path) -> None:
    backend = small_smollm()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|end|>", "<|return|>")])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"eos_token_id": 0}')

    def ends(template: str) -> set[str]:
        (tmp_path / "chat_template.jinja").write_text(template)
        tokenizer = Tokenizer.from_folder(tmp_path)
        names = {id: text for text, id in tokenizer.special_tokens.items()}
        return {names[id] for id in tokenizer.eos_ids}

    assert ends("plain") == {"<|endoftext|>"}
    assert ends("{{ '<|im_end|>' }}") == {"<|endoftext|>", "<|im_end|>"}
    assert ends("<|end|>") == {"<|endoftext|>", "<|end|>"}  # Phi-3
    assert ends("<|end|><|return|>") == {"<|endoftext|>", "<|return|>"}  # gpt-oss's channels


def test_templates_in_files_of_their_own(tmp_path: Path) -> None:
    small_smollm().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "chat_template.jinja").write_text("plain")
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("documents")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.render_chat(chat("x")) == "plain"
    assert tokenizer.render_chat(chat("x"), tools=TOOLS) == "tools"
    assert tokenizer.render_chat(chat("x"), chat_template="rag") == "documents"
    with pytest.raises(TokenizerError, match="no chat template is called 'none'"):
        tokenizer.render_chat(chat("x"), chat_template="none")


def test_added_tokens_go_through_the_decoder() -> None:
    """Gemma 3 has runs of spaces as added tokens, spelled with ▁."""
    backend = sentencepiece(legacy=False)
    backend.add_tokens([AddedToken("▁▁", normalized=False)])
    tokenizer = Tokenizer(backend)
    assert tokenizer.decode(tokenizer.encode("he▁▁he")) == "he  he"


def test_what_is_set_while_generating_stays_inside() -> None:
    """As the reference has it, whose `generation` is a block of its own."""
    template = "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
    assert build("llama3", template).render_chat(chat("x")) == "21"


def test_a_text_is_too_long_before_it_is_encoded(smollm: Tokenizer) -> None:
    longest = max(len(smollm.token_bytes(id)) for id in range(smollm.vocab_size))
    for text in (" " * 5000, "a" * 5000, "é" * 5000, "Hello, world! " * 500, "\n\t" * 3000):
        assert 0 < smollm.least_tokens(len(text)) <= len(smollm.encode(text))
    assert smollm.least_tokens(1000 * longest) == 1000


@pytest.mark.parametrize("text", ["word " * 2000, "<|im_end|>" * 1000, "é\n\t  x" * 2000])
def test_long_texts_have_the_tokens_that_short_ones_have(smollm: Tokenizer, text: str) -> None:
    """Those are encoded by another function of the library, which doesn't hold the lock."""
    assert smollm.decode(smollm.encode(text)) == text
    assert smollm.encode(text) == list(smollm._plain.encode(text, add_special_tokens=False).ids)
