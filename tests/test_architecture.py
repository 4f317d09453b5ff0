"""Imports point down only, and the core needs few packages: both read from the source itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.llama_folders import write_folder

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tinyllm"
# From the ground up. A module imports from its own row and those above it in this table.
LAYERS = [
    {"errors"},
    {"config", "vision_config"},
    {"kernels", "kv_cache", "weights"},
    {"tokenizer", "sampler", "image", "preprocess", "prompt"},
    {"model", "compiled", "vision", "vision_compiled", "image_prompt"},
    {"connector", "connected", "smolvlm"},
    {"decode", "distribution", "trace", "trace_file", "hooks", "causal", "explain", "display"},
    {"engine"},
    {"fetch"},
    {"parts"},
    {"lm"},
]
TOP = len(LAYERS)  # what isn't listed is a program: it may import anything but the API
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# Two modules of fetch only read files, as weights does: they stand where it stands.
FILE_FORMATS = {"tinyllm.fetch.gguf", "tinyllm.fetch.carried"}
RANK |= {"api": TOP + 1, "cli": TOP + 2, "__main__": TOP + 2}

# What running a model takes: these third-party packages and no others.
CORE = ["numpy", "numba", "llvmlite", "safetensors", "tokenizers", "PIL", "jinja2", "platformdirs"]
BEYOND_CORE = {
    "fetch": {"rich", "filelock", "huggingface_hub"},  # progress, locks, the hub extra
    "trace_file": {"pydantic"},  # checks what a file from elsewhere holds
}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The module or subpackage just under tinyllm/ that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports aren't used here"
            assert node.module is not None
            if node.module == "tinyllm":
                yield from (f"tinyllm.{alias.name}" for alias in node.names)
            else:
                yield node.module


def third_party(path: Path) -> set[str]:
    roots = {name.partition(".")[0] for name in imports(path)}
    return roots - set(sys.stdlib_module_names) - {"tinyllm"}


def test_the_table_is_of_modules_that_exist() -> None:
    there = {part(path) for path in sources()}
    assert set(RANK) <= there, set(RANK) - there


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    if path == PACKAGE / "__init__.py":  # the package's door shows what the layers hold
        return
    rank = RANK.get(part(path), TOP)
    upward = [
        name
        for name in imports(path)
        if name.startswith("tinyllm.") and RANK.get(name.split(".")[1], TOP) > rank
        if name not in {"tinyllm.__version__", *FILE_FORMATS}
    ]
    assert not upward, f"{path.relative_to(ROOT)} reaches up to {upward}"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_api_knows_the_web(path: Path) -> None:
    if part(path) != "api":
        web = {"starlette", "uvicorn", "anyio", "httpcore2", "h11", "httpx", "fastapi"}
        assert not third_party(path) & web


@pytest.mark.parametrize(
    "path",
    # A `__main__` is a program for a terminal, which no import reaches.
    [p for p in sources() if RANK.get(part(p), TOP) < TOP and p.name != "__main__.py"],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_the_core_needs_few_packages(path: Path) -> None:
    allowed = set(CORE) | BEYOND_CORE.get(part(path), set())
    assert third_party(path) <= allowed


def test_every_import_is_of_a_declared_package() -> None:
    """Nothing is used that only happens to be there, because something else needs it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = set(re.findall(r'^    "([A-Za-z0-9-]+)[\[>=]', text, re.MULTILINE))
    declared |= set(re.findall(r'^(?:hub|ray) = \["([a-z-]+)', text, re.MULTILINE))
    assert {"numpy", "starlette", "huggingface-hub"} <= declared
    # Imported under another name, or brought and pinned by another package.
    owners = {"PIL": "pillow", "llvmlite": "numba", "pydantic_core": "pydantic", "h11": "uvicorn",
              "anyio": "starlette", "typing_extensions": "pydantic"}  # fmt: skip
    for path in sources():
        for name in third_party(path):
            owner = owners.get(name, name.replace("_", "-"))
            assert owner in declared, f"{path.relative_to(ROOT)} imports {name}, of {owner}"


GENERATE = """
import sys

class Nothing:
    "Stands for packages that aren't installed."
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in FORBIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Nothing())
import tinyllm
lm = tinyllm.load(FOLDER)
print(lm.generate("Hello", max_tokens=5, temperature=0).tokens)
"""


def test_a_model_runs_without_the_servers_packages(tmp_path: Path) -> None:
    """`load` and `generate`, where the web's, the terminal's and the hub's packages are missing."""
    write_folder(tmp_path / "model")
    forbidden = {"starlette", "uvicorn", "httpcore2", "pydantic", "llguidance", "anyio",
                 "prometheus_client", "typer", "rich", "prompt_toolkit", "huggingface_hub",
                 "torch", "transformers"}  # fmt: skip
    code = GENERATE.replace("FORBIDDEN", repr(forbidden)).replace(
        "FOLDER", repr(str(tmp_path / "model"))
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(ast.literal_eval(done.stdout)) == 5
