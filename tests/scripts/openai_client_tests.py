"""Run the openai client's own tests of chat completions and models against a server of ours.

The tests come with the client's source distribution, fetched by pip from the package index for the
very version that is installed here; nothing of it is kept. Needs pytest-asyncio and the client's
aiohttp extra. Stored completions and the deletion of models are not offered, so their tests stay
out.

    python tests/scripts/openai_client_tests.py [URL …]

Without a URL a server is started, and both base URLs are tried.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = ("tests/api_resources/chat/test_completions.py", "tests/api_resources/test_models.py")
CHOSEN = "create or (TestModels or TestAsyncModels) and (retrieve or list)"
# The page's `created` is a float, which the unvalidated half of the client's own checks refuses.
DIALECTS = {
    "/v1": CHOSEN,
    "/api/v3/inference": f"({CHOSEN}) and not (create and overload_1 and loose)",
}


def fetch(folder: Path) -> Path:
    """The client's source tree, at the installed version."""
    version = importlib.metadata.version("openai")
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
         "--dest", folder, f"openai=={version}"],
        check=True,
    )  # fmt: skip
    (archive,) = folder.glob("openai-*.tar.gz")
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(folder, filter="data")
        else:
            tar.extractall(folder)
    return archive.with_name(archive.name.removesuffix(".tar.gz"))


def model_names(source: Path) -> set[str]:
    """The models that the tests ask for."""
    text = "".join((source / file).read_text("utf-8") for file in FILES)
    return set(re.findall(r'(?:model=|retrieve\(\s*)"([^"]+)"', text))


def run_tests(source: Path, url: str, chosen: str) -> int:
    """pytest on the client's files against one base URL; its exit code."""
    environ = {**os.environ, "TEST_API_BASE_URL": url, "PYTHONDONTWRITEBYTECODE": "1"}
    # The client and its tests are taken from where they are installed and unpacked.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        chosen,
        "-o",
        "addopts=",
        "-o",
        "filterwarnings=",
        "-o",
        "asyncio_mode=auto",
        *FILES,
    ]
    print(f"== {url}", flush=True)
    return subprocess.run(command, cwd=source, env=environ, check=False).returncode


def serve(names: set[str]) -> tuple[subprocess.Popen[str], str]:
    """A server that answers to the tests' model names, and its address."""
    aliases = [word for name in sorted(names) for word in ("--alias", name)]
    command = [sys.executable, ROOT / "server.py", "--port", "0", "--access-log", "off",
               "--max-tokens-cap", "16", *aliases]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert server.stdout is not None
    for line in server.stdout:
        print(line, end="", flush=True)
        if match := re.search(r"ready on (http\S+)", line):
            return server, match[1]
    raise SystemExit("the server didn't start")


def main(urls: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        source = fetch(Path(folder))
        if urls:
            return max(run_tests(source, url, CHOSEN) for url in urls)
        server, address = serve(model_names(source))
        try:
            codes = [run_tests(source, address + path, chosen) for path, chosen in DIALECTS.items()]
            urllib.request.urlopen(f"{address}/health", timeout=5).close()  # still alive
            return max(codes)
        finally:
            server.terminate()
            server.wait(40)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
