"""Run the openai client's own tests of its resources against a server of ours.

The tests come with the client's source distribution, fetched by pip from the package index for the
very version that is installed here; nothing of it is kept. Needs pytest-asyncio and the client's
aiohttp extra.

What stays out was written for a server that answers anything: stored completions and the deletion
of models, which are not offered; text completions with all parameters (`best_of` 0 beside an `n` of
1, and a `suffix`, are refused); and all of responses, for `create` is called with neither model nor
input or with what is refused, and the others with ids that nobody made. Those are tried over real
answers by `tests/clients/openai_python.py` and `tests/api/answer`.

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
FILES = {  # which of a file's tests
    "tests/api_resources/chat/test_completions.py": "create",
    "tests/api_resources/test_completions.py": "create and not all_params",
    "tests/api_resources/test_models.py": "retrieve or list",
}
# The page's `created` is a float, which the unvalidated half of the client's own checks refuses.
DIALECTS = {"/v1": "", "/api/v3/inference": " and not (create and overload_1 and loose)"}


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


def run_tests(source: Path, url: str, but: str = "") -> int:
    """pytest on the client's files against one base URL; its worst exit code."""
    print(f"== {url}", flush=True)
    return max(run_file(source, url, file, f"({chosen}){but}") for file, chosen in FILES.items())


def run_file(source: Path, url: str, file: str, chosen: str) -> int:
    """The chosen tests of one file."""
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
        file,
    ]
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
            return max(run_tests(source, url) for url in urls)
        server, address = serve(model_names(source))
        try:
            codes = [run_tests(source, address + path, but) for path, but in DIALECTS.items()]
            urllib.request.urlopen(f"{address}/health", timeout=5).close()  # still alive
            return max(codes)
        finally:
            server.terminate()
            server.wait(40)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
