"""Structured answers of the real model, over a real socket: whatever the budget, they fit."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.api.constraints.test_closing import random_schema, tool
from tests.api.support import Live, O, live
from tinyllm.api.house.loading import load_models
from tinyllm.api.house.settings import Settings

pytestmark = pytest.mark.long
MODEL = "smollm2-135m-instruct"
TEMPERATURES = (0.0, 0.7, 1.5)
N_SCHEMAS = 60
WORDS = "Tell me about a town by the sea, with its number of people."


@pytest.fixture(scope="module")
def server(weights_folder: Path) -> Iterator[Live]:
    settings = Settings(port=0, access_log="off", model=(str(weights_folder),))
    with live(settings, lambda: load_models(settings)) as server:
        yield server


def shapes(schema: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(path, name of the limit, body) of a request by each way to ask for the schema."""
    named, chat = {"name": "town", "schema": schema}, [{"role": "user", "content": WORDS}]
    format = {"type": "json_schema", "json_schema": named}
    arguments = {"type": "object", "properties": {"it": schema}, "required": ["it"],
                 "additionalProperties": False}  # fmt: skip
    others = {"type": "object", "properties": {"it": {"type": "number"}}, "required": ["it"]}
    tools = [tool("town", arguments), tool("sea", others)]
    call = {"type": "function", "function": {"name": "town"}}
    return [
        ("chat/completions", "max_tokens", {"messages": chat, "response_format": format}),
        ("chat/completions", "max_tokens", {"messages": chat, "tools": tools, "tool_choice": call}),
        ("chat/completions", "max_tokens",
         {"messages": chat, "tools": tools[:1], "tool_choice": "required",
          "parallel_tool_calls": True}),
        ("completions", "max_tokens", {"prompt": WORDS, "guided_json": schema}),
        ("responses", "max_output_tokens",
         {"input": WORDS, "text": {"format": {"type": "json_schema", **named}}}),
    ]  # fmt: skip


def values_of(answer: dict[str, Any]) -> list[Any]:
    """What the answer holds, parsed: a value, or the argument of each call."""
    if "output" in answer:
        return [json.loads(answer["output"][0]["content"][0]["text"])]
    choice = answer["choices"][0]
    if "text" in choice:
        return [json.loads(choice["text"])]
    calls = choice["message"].get("tool_calls")
    if not calls:
        return [json.loads(choice["message"]["content"])]
    return [json.loads(call["function"]["arguments"])["it"] for call in calls]


def check(server: Live, seed: int) -> int:
    """One schema in one shape, at three temperatures, with five budgets; how many answers."""
    rng = random.Random(1000 + seed)
    schema, n = random_schema(rng), 0
    path, limit, body = shapes(schema)[seed % 5]
    body = {"model": MODEL, "seed": seed, **body}
    refused = server.post(f"{O}/{path}", {**body, limit: 1}).json()
    if not refused.get("error"):  # one token is enough
        shortest = 1
    else:
        assert refused["error"]["code"] == "max_tokens_too_small", refused
        shortest = int(refused["error"]["message"].split("takes ")[1].split(".")[0])
    for temperature in TEMPERATURES:
        for budget in (shortest, shortest + rng.randint(1, 12), 120 + shortest):
            asked = {**body, "temperature": temperature, limit: budget}
            response = server.post(f"{O}/{path}", asked, timeout=600)
            assert response.status_code == 200, response.text
            for value in values_of(response.json()):
                jsonschema.validate(value, schema)
            n += 1
    return n


def test_every_schema_temperature_and_budget(server: Live) -> None:
    with ThreadPoolExecutor(16) as pool:
        n = sum(pool.map(lambda seed: check(server, seed), range(N_SCHEMAS)))
    assert n == N_SCHEMAS * len(TEMPERATURES) * 3


def test_an_object_with_a_number_in_120_tokens(server: Live) -> None:
    """What `generateObject` asks for: 20 of 20."""
    schema = {"type": "object", "properties": {"name": {"type": "string"},
              "population": {"type": "number"}}, "required": ["name", "population"],
              "additionalProperties": False}  # fmt: skip
    path, limit, body = shapes(schema)[0]

    def ask(seed: int) -> None:
        asked = {"model": MODEL, **body, limit: 120, "temperature": seed % 3 / 2, "seed": seed}
        for value in values_of(server.post(f"{O}/{path}", asked).json()):
            jsonschema.validate(value, schema)

    with ThreadPoolExecutor(10) as pool:
        assert len(list(pool.map(ask, range(20)))) == 20
