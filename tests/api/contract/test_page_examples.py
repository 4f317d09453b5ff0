"""The reference page's five examples, their bodies word for word, and real clients beside them.

All run on the default models themselves, as `python server.py` serves them.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from PIL import Image, ImageDraw
from pydantic import BaseModel

import tinyllm
from tests.api.support import MODEL, PREFIXES, Live, S, events_of, live
from tinyllm.api.house.loading import load_models
from tinyllm.api.house.settings import Settings
from tinyllm.api.prompt.served import ServedModel
from tinyllm.engine.engine import Engine
from tinyllm.errors import ImageError

TEXT = json.loads("""
{
"model": "nugen-flash-instruct",
"messages": [
{
"role": "system",
"content": "You are a helpful assistant."
},
{
"role": "user",
"content": "What is the capital of France?"
}
],
"max_tokens": 500,
"temperature": 0.7
}
""")
BY_URL = json.loads("""
{
"model": "qwen3-vl-30b",
"messages": [
{
"role": "user",
"content": [
{
"type": "text",
"text": "Describe what you see in this image."
},
{
"type": "image_url",
"image_url": {
"url": "https://example.com/image.jpg"
}
}
]
}
],
"max_tokens": 1000
}
""")
BY_BASE64 = json.loads("""
{
"model": "qwen3-vl-30b",
"messages": [
{
"role": "user",
"content": [
{
"type": "text",
"text": "What's in this image?"
},
{
"type": "image_url",
"image_url": {
"url": "data:image/jpeg;base64,/9j/4AAQSkZJRgABAQEAYABgAAD..."
}
}
]
}
]
}
""")
CALLING = json.loads("""
{
"model": "nugen-flash-instruct",
"messages": [
{"role": "user", "content": "What's the weather in Boston?"}
],
"tools": [
{
"type": "function",
"function": {
"name": "get_weather",
"description": "Get current weather",
"parameters": {
"type": "object",
"properties": {
"location": {"type": "string"}
}
}
}
}
],
"tool_choice": "auto"
}
""")
STREAMING = json.loads("""
{
"model": "nugen-flash-instruct",
"messages": [{"role": "user", "content": "Tell me a story"}],
"stream": true
}
""")


def jpeg() -> bytes:
    image = Image.new("RGB", (400, 300), (222, 228, 214))
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 90, 170, 220), fill=(190, 60, 50))
    draw.rectangle((240, 90, 360, 210), fill=(60, 90, 170))
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


class Example:
    """Serves example.com's image, and nothing else."""

    async def fetch(self, url: str) -> bytes:
        if url != "https://example.com/image.jpg":
            raise ImageError("its host can't be reached")
        return jpeg()


@pytest.fixture(scope="module")
def real(weights_folder: Path, dinov2_folder: Path) -> Iterator[Live]:
    """The default models at 8 bits."""
    settings = Settings(port=0, access_log="off", kv_cache_mb=128, max_tokens_cap=128)
    with live(settings, lambda: load_models(settings), images=Example()) as server:
        yield server


def post(server: Live, body: dict[str, Any], prefix: str = S) -> dict[str, Any]:
    response = server.post(f"{prefix}/chat/completions", body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_text_example(real: Live) -> None:
    answer = post(real, TEXT)
    assert set(answer) >= {"id", "object", "created", "model", "choices", "usage"}
    assert answer["model"] == "nugen-flash-instruct"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert 0 < answer["confidence_score"] <= 100
    greedy = post(real, {**TEXT, "temperature": 0})
    assert greedy["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert greedy["choices"][0]["finish_reason"] == "stop"
    assert greedy["usage"]["completion_tokens"] == 8


def test_vision_example_by_url(real: Live) -> None:
    answer = post(real, {**BY_URL, "temperature": 0})
    assert answer["model"] == "qwen3-vl-30b"
    content = answer["choices"][0]["message"]["content"]
    assert "red circle on the left" in content and "blue square on the right" in content
    assert answer["usage"]["prompt_tokens"] > 30  # the image's own among them
    assert "confidence_score" not in answer


def test_vision_example_by_base64(real: Live) -> None:
    cut = real.post(f"{S}/chat/completions", BY_BASE64)  # the page's image is cut short itself
    assert cut.status_code == 400
    assert cut.json()["error"]["param"] == "messages[0].content[1].image_url.url"
    whole = json.loads(json.dumps(BY_BASE64))
    url = "data:image/jpeg;base64," + base64.b64encode(jpeg()).decode()
    whole["messages"][0]["content"][1]["image_url"]["url"] = url
    by_data = post(real, whole)
    assert by_data["usage"]["prompt_tokens"] > 30
    for lenient in (
        url.rstrip("="),
        url.replace("+", "-").replace("/", "_").replace("image_", "image/"),
    ):
        whole["messages"][0]["content"][1]["image_url"] = lenient
        assert post(real, whole)["usage"]["prompt_tokens"] == by_data["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    "url",
    ["http://example.com/image.jpg", "file:///etc/passwd", "https://example.com/other.jpg",
     "data:text/plain;base64,AAAA", "data:image/png;base64,AAAA", "data:image/png,x", "",
     "data:image/png;base64,*"],
)  # fmt: skip
def test_images_that_cannot_be_used_are_400(real: Live, url: str) -> None:
    body = json.loads(json.dumps(BY_URL))
    body["messages"][0]["content"][1]["image_url"]["url"] = url
    response = real.post(f"{S}/chat/completions", body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_image"


def test_at_most_eight_images(real: Live) -> None:
    url = "data:image/jpeg;base64," + base64.b64encode(jpeg()).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    body = {**BY_URL, "messages": [{"role": "user", "content": [part] * 9}]}
    assert real.post(f"{S}/chat/completions", body).status_code == 400


def test_function_calling_example(real: Live) -> None:
    answer = post(real, {**CALLING, "temperature": 0})
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"location": "Boston"}
    # The conversation goes on in words.
    messages = [
        *CALLING["messages"],
        choice["message"],
        {
            "role": "tool",
            "tool_call_id": call["id"],
            "content": '{"temperature": 72, "sky": "sunny"}',
        },
    ]
    words = post(real, {**CALLING, "messages": messages, "temperature": 0})["choices"][0]
    assert words["finish_reason"] == "stop"
    assert "sunny" in words["message"]["content"]
    sampled = post(real, CALLING)["choices"][0]
    assert sampled["finish_reason"] in ("tool_calls", "length")


def test_streaming_example(real: Live) -> None:
    response = real.post(f"{S}/chat/completions", STREAMING)
    chunks = events_of(response.text)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert chunks[-1]["usage"]["total_tokens"] > 0
    assert all("usage" not in chunk for chunk in chunks[:-1])


# -- the auto rule, measured ---------------------------------------------------------------------


@pytest.mark.long
def test_auto_decides_as_labelled(real: Live) -> None:
    """`decide` says what it was set on; this holds it to the other half."""
    data = json.loads(
        (Path(__file__).parent.parent / "prompt" / "data" / "tool_decisions.json").read_text(
            "utf-8"
        )
    )
    right = 0
    for row in data["held_out"]:
        body = {
            "model": MODEL, "messages": [{"role": "user", "content": row["user"]}],
            "tools": data["tools"][row["tools"]], "temperature": 0,
            "max_tokens": 48,  # the least in which every one of these calls can end
        }  # fmt: skip
        choice = post(real, body, "/v1")["choices"][0]
        right += bool(choice["message"].get("tool_calls")) == row["call"]
    print(f"auto: {right} of {len(data['held_out'])} as labelled")
    assert right >= 50


# -- clients -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=PREFIXES, ids=["S", "O"])
def client(real: Live, request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=real.url + request.param, api_key="x", max_retries=0) as client:
        yield client


ASK: dict[str, Any] = {
    "model": MODEL, "messages": TEXT["messages"], "temperature": 0, "max_tokens": 40,
}  # fmt: skip
PARIS = "The capital of France is Paris."


def test_openai_create_and_stream(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASK, n=2, logprobs=True, top_logprobs=2)
    assert [choice.message.content for choice in answer.choices] == [PARIS] * 2
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content) == PARIS
    stream = client.chat.completions.create(**ASK, stream=True)
    pieces = [choice.delta.content or "" for chunk in stream for choice in chunk.choices]
    assert "".join(pieces) == PARIS


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_openai_stream_helper(client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    with client.chat.completions.stream(**ASK, stream_options=options) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == PARIS == final.choices[0].message.content
    assert final.usage is not None and final.usage.completion_tokens == 8


class Person(BaseModel):
    name: str
    age: int


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_openai_parse(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Make up a person with a name and an age."}]
    answer = client.chat.completions.parse(**{**ASK, "messages": messages}, response_format=Person)
    person = answer.choices[0].message.parsed
    assert isinstance(person, Person) and person.name


def test_openai_tools(client: openai.OpenAI) -> None:
    ask = {**ASK, "messages": CALLING["messages"], "tools": CALLING["tools"]}
    answer = client.chat.completions.create(**ask, tool_choice="required")
    calls = answer.choices[0].message.tool_calls
    assert calls is not None and calls[0].type == "function"
    arguments = json.loads(calls[0].function.arguments)
    jsonschema.validate(arguments, CALLING["tools"][0]["function"]["parameters"])
    name, text = "", ""
    for chunk in client.chat.completions.create(**ask, tool_choice="required", stream=True):
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or ():
                assert call.function is not None
                name += call.function.name or ""
                text += call.function.arguments or ""
    assert (name, json.loads(text)) == ("get_weather", arguments)


def test_openai_models_and_errors(client: openai.OpenAI) -> None:
    assert MODEL in {model.id for model in client.models.list()}
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**{**ASK, "temperature": 9})
    assert caught.value.status_code in (400, 422)
    assert caught.value.param == "temperature"


def test_openai_sees_a_fault_in_mid_stream(scripted: Live) -> None:
    assert scripted.runner is not None
    steps = iter(range(1000))

    def fail(segments: Any) -> None:
        import time

        time.sleep(0.02)
        if next(steps) > 4:
            raise RuntimeError

    scripted.runner.before = fail
    with openai.OpenAI(base_url=scripted.url + "/v1", api_key="x", max_retries=0) as client:
        stream = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], temperature=0, stream=True
        )
        with pytest.raises(openai.APIError, match="model failed"):
            list(stream)


# -- numbers -------------------------------------------------------------------------------------


def test_logprobs_agree_with_the_readable_model(weights_folder: Path) -> None:
    """With f32 weights, to 1e-3: the API's figures are those of a plain forward."""
    lm = tinyllm.load(weights_folder)
    engine = Engine(lm.runner, kv_cache_mb=64)
    engine.start()
    model = ServedModel(
        lm.name, lm.tokenizer, engine, lm.config.vocab_size, "fp", {"aliases": [MODEL]}
    )
    with live(Settings(port=0, access_log="off"), lambda: [model]) as server:
        body = {**TEXT, "temperature": 0, "logprobs": True, "max_tokens": 4}
        entries = post(server, body)["choices"][0]["logprobs"]["content"]
    steps = lm.decode_steps(TEXT["messages"], max_tokens=4, temperature=0)
    for entry, step in zip(entries, steps, strict=True):
        assert entry["logprob"] == pytest.approx(step.logprob, abs=1e-3)
