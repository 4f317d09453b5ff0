"""Fuzz a running server, or one started here, by its own OpenAPI document.

    python -m tests.scripts.fuzz_api [--seed N] [--examples N] [URL]

Nothing may answer 5xx, nothing may answer what the document doesn't say, and nothing that breaks
a schema may be accepted. Needs schemathesis.

What is served is the default model with its tokenizer and template, but of two small layers of
random weights: of thousands of answers nobody reads the words. The model that sees is the real one.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from tests.llama_folders import random_weights
from tinyllm import fetch
from tinyllm.config import ModelConfig
from tinyllm.fetch import catalog

ROOT = Path(__file__).resolve().parents[2]
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,negative_data_rejection,"
    "unsupported_method,missing_required_header,ignored_auth"
)


def fuzz(url: str, seed: int, examples: int) -> int:
    """schemathesis' exit code."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json",
               "--checks", CHECKS, "--max-examples", str(examples), "--seed", str(seed),
               "--request-timeout", "60", "--no-color"]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:  # it keeps a database of its own
        return subprocess.run(command, cwd=folder, check=False).returncode


SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}


def write_small(folder: Path) -> Path:
    """The default model's folder, with weights of a small shape."""
    real = fetch.ensure(catalog.DEFAULT)
    shutil.copytree(real, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.gguf", ".*"))
    config = {**json.loads((real / "config.json").read_text()), **SMALL}
    (folder / "config.json").write_text(json.dumps(config))
    weights = random_weights(ModelConfig.from_hf(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def serve(model: Path) -> tuple[subprocess.Popen[str], str]:
    """A server whose answers are short, and its address."""
    command = [sys.executable, ROOT / "server.py", "--port", "0", "--access-log", "off",
               "--max-tokens-cap", "6", "--model", model,
               "--model", "smollm2-135m-vision"]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert server.stdout is not None
    for line in server.stdout:
        print(line, end="", flush=True)
        if match := re.search(r"ready on (http\S+)", line):
            return server, match[1]
    raise SystemExit("the server didn't start")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examples", type=int, default=50)
    args = parser.parse_args()
    if args.url:
        return fuzz(args.url.rstrip("/"), args.seed, args.examples)
    with tempfile.TemporaryDirectory() as folder:
        server, url = serve(write_small(Path(folder) / catalog.DEFAULT))
        try:
            return fuzz(url, args.seed, args.examples)
        finally:
            server.terminate()
            server.wait(40)


if __name__ == "__main__":
    sys.exit(main())
