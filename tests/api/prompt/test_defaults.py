"""Sampling parameters that a request leaves out: whose defaults hold, and where they are shown."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.support import MODEL, PREFIXES, Live, O, S, ScriptRunner, live, scripted_model
from tests.llama_folders import write_folder
from tinyllm.api.house.settings import Settings
from tinyllm.api.prompt.defaults import CONTRACT, SamplingDefaults, told
from tinyllm.errors import ConfigError
from tinyllm.parts import Parts
from tinyllm.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[3]
OWN = {"temperature": 0.6, "top_k": 1}
FLAGS = {"temperature": 0.3, "min_p": 0.05}


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer) -> Iterator[Live]:
    runner = ScriptRunner(tokenizer)
    defaults = SamplingDefaults(OWN, FLAGS)
    models = lambda: [scripted_model(tokenizer, runner, defaults=defaults)]  # noqa: E731
    with live(Settings(port=0, access_log="off"), models, runner=runner) as server:
        yield server


def held(prefix: str) -> dict[str, float]:
    """What the server above goes by: the page's, the model's, the flags', the contract's."""
    temperature = 1.0 if prefix == S else 0.6
    return {**CONTRACT, "temperature": temperature, "top_k": 1, "min_p": 0.05}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_models_show_them(server: Live, prefix: str) -> None:
    assert server.http.get(f"{prefix}/models/{MODEL}").json()["default_sampling"] == held(prefix)
    for model in server.http.get(f"{prefix}/models").json()["data"]:
        assert model["default_sampling"] == held(prefix)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_shape_of_request_goes_by_them(server: Live, prefix: str) -> None:
    stages = {"trace": {"stages": True}, "max_tokens": 1, "model": MODEL}
    asked = [
        ("chat/completions", {"messages": [{"role": "user", "content": "Hi"}], **stages}),
        ("completions", {"prompt": "Hi", **stages}),
    ]
    for path, body in asked:
        choice = server.post(f"{prefix}/{path}", body).json()["choices"][0]
        kept = {stage["name"]: stage["n_kept"] for stage in choice["trace"]["steps"][0]["stages"]}
        assert kept["top_k"] == 1
        assert kept["temperature"] > 1
    told = server.post(f"{prefix}/responses", {"model": MODEL, "input": "Hi"}).json()
    assert told["temperature"] == held(prefix)["temperature"]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_a_request_says_goes_before_them_and_null_is_nothing_said(
    server: Live, prefix: str
) -> None:
    def temperature(**more: Any) -> Any:
        body = {"model": MODEL, "input": "Hi", **more}
        return server.post(f"{prefix}/responses", body).json()["temperature"]

    assert temperature(temperature=0) == 0
    assert temperature(temperature=None) == temperature() == held(prefix)["temperature"]


def test_a_small_model_answers_the_same_every_time_where_its_file_says_greedy(
    tokenizer: Tokenizer,
) -> None:
    runner = ScriptRunner(tokenizer)
    defaults = SamplingDefaults({"temperature": 0}, {})
    models = lambda: [scripted_model(tokenizer, runner, defaults=defaults)]  # noqa: E731
    with live(Settings(port=0, access_log="off"), models, runner=runner) as server:
        body = {"temperature": None}
        answer = server.chat(O, body).json()["choices"][0]["message"]["content"]
        assert answer == "The capital of France is Paris."


def test_what_a_file_may_say(tmp_path: Path) -> None:
    write_folder(tmp_path)
    file = tmp_path / "generation_config.json"
    assert Parts.of(tmp_path).sampling_defaults() == {}
    file.write_text(json.dumps({"eos_token_id": [2, 7], "top_p": 0.9, "top_k": None, "foo": 1}))
    assert Parts.of(tmp_path).sampling_defaults() == {"top_p": 0.9}
    assert set(Tokenizer.from_folder(tmp_path).eos_ids) == {2, 7}
    file.write_text(json.dumps({"temperature": "hot"}))
    with pytest.raises(ConfigError, match=r"generation_config.json: temperature must be a number"):
        Parts.of(tmp_path).sampling_defaults()


def test_the_words_of_the_ready_line() -> None:
    assert told(CONTRACT) == "temperature 1"
    assert told({**CONTRACT, "temperature": 0.6, "top_k": 20}) == "temperature 0.6, top_k 20"


def test_a_server_says_how_it_draws(tmp_path: Path) -> None:
    """From files and flags to the ready line and /models, in a process of its own."""
    folder = tmp_path / "small"
    write_folder(folder)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20}))
    flags = ("--temperature", "0.2", "--top-p", "0.9", "--backend", "reference", "--port", "0")
    command = [sys.executable, "server.py", "--model", str(folder), *flags]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not any("ready on" in line for line in lines):
            lines.append(process.stdout.readline())
            assert lines[-1], "".join(lines)
        ready = lines[-1]
        url = re.search(r"http://\S+", ready)
        assert url is not None
        assert "temperature 0.6, top_p 0.9, top_k 20 on /v1" in ready
        assert "temperature 1, top_p 0.9, top_k 20 on /api/v3/inference" in ready
        assert "--temperature 0.2 is without effect on small" in "".join(lines)
        wanted = {**CONTRACT, "temperature": 0.6, "top_p": 0.9, "top_k": 20}
        assert httpx.get(f"{url[0]}/v1/models/small").json()["default_sampling"] == wanted
        process.terminate()
    assert process.returncode == 0
