"""Size is refused before it is paid for: of bodies, texts, counts, pictures and schemas."""

from __future__ import annotations

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.attacks.support import CHAT, MODEL, PATIENCE, ask, chat, polite
from tests.load import servers
from tests.load.servers import Server

pytestmark = pytest.mark.attacks
MB = 1_000_000
LONG = "The quick brown fox jumps over the lazy dog. " * 22_000


IMAGE = "data:image/png;base64,"


def said(messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": messages, **more}


def call(arguments: str) -> list[dict[str, Any]]:
    function = {"name": "f", "arguments": arguments}
    return [
        {"role": "user", "content": "x"},
        {
            "role": "assistant",
            "tool_calls": [{"id": "1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "y"},
    ]


def pictured(url: str) -> dict[str, Any]:
    return chat([{"type": "image_url", "image_url": {"url": url}}], model="smollm2-135m-vision")


def deep(n: int) -> bytes:
    return b'{"a":' * n + b"1" + b"}" * n


BODIES: dict[str, tuple[str, Any]] = {
    "28 MB to tokenize": ("/v1/tokenize", {"text": LONG * 28}),
    "1 MB to tokenize": ("/v1/tokenize", {"text": LONG}),
    "28 MB as chat": (CHAT, chat(LONG * 28)),
    "3 MB as chat": (CHAT, chat(LONG * 3)),
    "3 MB of messages, truncated": (
        "/api/v3/inference/chat/completions",
        said([{"role": "user", "content": "x" * 700}] * 4000, max_tokens=1),
    ),
    "100,000 messages": (CHAT, said([{"role": "user", "content": "x"}] * 100_000)),
    "30,000 bad messages": (CHAT, said([{"role": "x"}] * 30_000)),
    "parts without end": (CHAT, chat([{"type": "text", "text": "x"}] * 60_000)),
    "25 MB of arguments": (CHAT, said(call(json.dumps(["x" * 25 * MB])))),
    "3 MB of numbers in arguments": (CHAT, said(call("[" + "1," * 1_500_000 + "1]"))),
    "900,000 logit_bias keys": (CHAT, chat(logit_bias={str(i): 1 for i in range(900_000)})),
    "5,000 logit_bias keys": (CHAT, chat(logit_bias={str(i): 200 for i in range(5_000)})),
    "2,000,000 numbers": ("/v1/detokenize", {"tokens": [1] * 2_000_000}),
    "100,000 bad numbers": ("/v1/detokenize", {"tokens": [-1] * 100_000}),
    "a wide list": (CHAT, b'{"a": [' + b"[]," * 9_000_000 + b"[]]}"),
    "a deep one": (CHAT, deep(5_000_000)),
    "a string without end": (CHAT, b'{"a": "' + b"x" * 4 * MB),
    "a key without end": (CHAT, b'{"' + b"x" * 4 * MB),
    "bytes that are no text": (CHAT, b'{"a": "' + b"\xff" * 4 * MB),
    "escapes": (CHAT, b'{"a": "' + b"\\u00e9" * 600_000 + b'"}'),
    "unknown keys": (CHAT, chat() | {f"k{i}": i for i in range(4_000)}),
    "an image that is text": (CHAT, chat([{"type": "text", "text": IMAGE + LONG * 20}])),
    "an image with spaces": (CHAT, pictured(IMAGE + "A " * 6_900_000)),
    "an image in escapes": (CHAT, pictured(IMAGE + "%41" * 4_600_000)),
    "ids beyond the context": ("/v1/completions", {"model": MODEL, "prompt": [1] * 100_000}),
    "2 MB to complete": ("/v1/completions", {"model": MODEL, "prompt": LONG * 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_a_large_body_costs_the_others_nothing(server: Server, name: str) -> None:
    path, body = BODIES[name]
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with polite(server) as seen:
        status, answer = ask(server.port, data, path)
    seen.report(f"{name} ({len(data) / MB:.1f} MB, status {status})")
    assert max(seen.waits) < PATIENCE and set(seen.statuses) == {200}
    if "truncated" in name or "unknown" in name:
        assert status == 200, answer
    else:
        assert 400 <= status < 500, answer
    assert max(seen.memory) < seen.memory[0] + 700 * MB


def test_memory_comes_back(server: Server) -> None:
    rounds = []
    for _ in range(3):
        with polite(server) as seen:
            for path, body in list(BODIES.values())[:6]:
                ask(server.port, body, path)
        rounds.append(seen.memory[-1])
    print("after each round:", [f"{size / MB:.0f} MB" for size in rounds])
    assert rounds[-1] < 1.1 * rounds[1]


def picture(width: int, height: int, kind: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 10, 10)).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def test_pictures_of_many_pixels_take_turns(server: Server) -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": picture(8000, 5000, kind)}}
        for kind in ("PNG", "JPEG")
    ]
    body = {**chat([*parts, {"type": "text", "text": "What?"}]), "model": "smollm2-135m-vision"}
    ask(server.port, {**chat([{"type": "image_url", "image_url": picture(64, 64, "PNG")}]),
                      "model": "smollm2-135m-vision"})  # fmt: skip  # the encoder is loaded
    with polite(server) as seen, ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(lambda _: ask(server.port, body)[0], range(6)))
    seen.report(f"6 requests of 2 pictures of 40 megapixels ({statuses})")
    assert set(statuses) == {200}
    assert max(seen.waits) < PATIENCE
    assert max(seen.memory) < seen.memory[0] + 900 * MB


def intersected(n: int) -> dict[str, Any]:
    patterns = [{"pattern": f"^.*a.{{{i}}}$"} for i in range(1, n + 1)]
    return {"type": "object", "properties": {"a": {"type": "string", "allOf": patterns}}}


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}


def test_a_schema_that_never_compiles(server: Server) -> None:
    with polite(server) as seen, ThreadPoolExecutor(4) as pool:
        asked = pool.submit(ask, server.port, chat(response_format=schema(intersected(30))))
        beside = [ask(server.port, chat())[0] for _ in range(5)]
        status, answer = asked.result()
    seen.report(f"30 intersected patterns (status {status}, beside it {beside})")
    assert status == 400 and b"takes more than" in answer
    assert beside == [200] * 5
    assert max(seen.waits) < PATIENCE
    assert max(seen.memory) < seen.memory[0] + 1300 * MB


def test_new_grammars_hold_nobody_up(weights_folder: Path) -> None:
    """Not even the first one, for which nothing has been started or read yet."""
    with servers.tinyllm("--model", str(weights_folder), "--kv-cache-mb", "256") as fresh:
        for i in range(4):
            wanted = {"type": "object", "properties": {f"a{i}": {"type": "integer"}}}
            with polite(fresh) as seen:
                status, _ = ask(fresh.port, chat(response_format=schema(wanted), max_tokens=20))
            seen.report(f"new grammar {i}")
            assert status == 200 and max(seen.waits) < 0.5


def test_long_stop_strings_and_many_tools(server: Server) -> None:
    with polite(server) as seen:
        stops = [letter * 50_000 for letter in "abcd"]
        status, _ = ask(server.port, chat("Count to a hundred.", stop=stops, max_tokens=64))
        assert status == 200
        parameters = {
            "type": "object",
            "properties": {"x": {"type": "string", "description": "y" * 500}},
        }
        tools = [
            {"type": "function", "function": {"name": f"{'n' * 50}{i}", "parameters": parameters,
                                              "description": "A long description of it. " * 60}}
            for i in range(128)
        ]  # fmt: skip
        status, answer = ask(server.port, chat("Call the last tool.", tools=tools))
        assert status == 200, answer
    seen.report("50,000-character stop strings, 128 long tools")
    assert max(seen.waits) < PATIENCE
