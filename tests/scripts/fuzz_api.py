"""Fuzz a running server, or one started here, by its own OpenAPI document.

    python tests/scripts/fuzz_api.py [--seed N] [--examples N] [URL]

Nothing may answer 5xx, nothing may answer what the document doesn't say, and nothing that breaks
a schema may be accepted. Needs schemathesis.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

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


def serve() -> tuple[subprocess.Popen[str], str]:
    """A server whose answers are short, and its address."""
    command = [sys.executable, ROOT / "server.py", "--port", "0", "--access-log", "off",
               "--max-tokens-cap", "6"]  # fmt: skip
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
    server, url = serve()
    try:
        return fuzz(url, args.seed, args.examples)
    finally:
        server.terminate()
        server.wait(40)


if __name__ == "__main__":
    sys.exit(main())
