"""Imports point down only, and the core needs few packages: both read from the source itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.llama_folders import write_folder

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tinyllm"
# From the ground up, a row a floor: a module imports from its own row and those above it in this
# table, inside functions too. Only types may look up (`if TYPE_CHECKING`).
LAYERS = [
    {"errors"},
    {"families"},
    {"config"},
    {"files", "weights", "kv_cache", "text"},
    {"runner", "kernels"},
    {"tokenizer", "sampler", "prompt", "distribution"},
    {"model", "compiled"},
    {"vision", "inside"},
    {"step"},
    {"decode"},
    {"engine", "fetch"},
    {"parts"},
    {"lm"},
    {"measure"},
    {"api"},
    {"terminal"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# The rooms of the API, from the ground up, as a request meets them: see `tinyllm/api/__init__.py`.
API_ROOMS = ["limits", "contract", "constraints", "prompt", "answer", "house", "ray_serve"]
PROGRAMS = RANK["measure"]  # from here up, packages beyond the core's are welcome

# What running a model takes: these third-party packages and no others.
CORE = ["numpy", "numba", "llvmlite", "safetensors", "gguf", "tokenizers", "PIL", "jinja2",
        "platformdirs", "threadpoolctl"]  # fmt: skip
BEYOND_CORE = {
    "fetch": {"rich", "filelock", "huggingface_hub"},  # progress, locks, the hub extra
    "inside": {"pydantic", "rich"},  # checks what a trace from elsewhere holds; shows it
}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The module or subpackage just under tinyllm/ that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, wherever the import stands; types aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports aren't used here"
            assert node.module is not None
            if node.module.partition(".")[0] == "tinyllm":
                # A name of a module may be a module of a room, or what a module holds.
                for alias in node.names:
                    inner = PACKAGE.parent / node.module.replace(".", "/") / f"{alias.name}.py"
                    is_module = inner.exists() or node.module == "tinyllm"
                    yield f"{node.module}.{alias.name}" if is_module else node.module
            else:
                yield node.module


def third_party(path: Path) -> set[str]:
    roots = {name.partition(".")[0] for name in imports(path)}
    return roots - set(sys.stdlib_module_names) - {"tinyllm"}


def test_the_table_has_every_module_once() -> None:
    assert sum(len(names) for names in LAYERS) == len(RANK)
    assert set(RANK) == {part(path) for path in sources()} - {"__init__"}


def test_the_top_is_the_transformer_alone() -> None:
    assert len([path for path in PACKAGE.glob("*.py") if not path.name.startswith("__")]) <= 15


def test_imports_point_down() -> None:
    upward = [
        f"{path.relative_to(ROOT)} reaches up to {name}"
        for path in sources()
        if path != PACKAGE / "__init__.py"  # the package's door shows what the rooms hold
        for name in imports(path)
        if name.startswith("tinyllm.") and name != "tinyllm.__version__"
        if RANK[name.split(".")[1]] > RANK[part(path)]
    ]
    assert not upward, "\n".join(upward)


def test_the_rooms_of_the_api_have_one_direction() -> None:
    """What checks a request knows nothing of what plans it, and so on up to the routes."""
    rank = {room: i for i, room in enumerate(["__init__", *API_ROOMS])}
    upward = [
        f"{path.relative_to(ROOT)} reaches up to {name}"
        for path in sorted((PACKAGE / "api").rglob("*.py"))
        for name in imports(path)
        if name.startswith("tinyllm.api.")
        if rank[name.split(".")[2]] > rank[path.relative_to(PACKAGE).parts[1].removesuffix(".py")]
    ]
    assert not upward, "\n".join(upward)


def test_no_circles() -> None:
    """Within a room, too, modules can be put in an order in which each needs earlier ones alone."""
    names = {module_name(path): path for path in sources()}
    needs = {
        name: {known for known in imports(path) if known in names and known != name}
        for name, path in names.items()
        if name != "tinyllm"
    }
    while needs:
        ready = {name for name, wanted in needs.items() if not wanted & set(needs)}
        assert ready, f"these import each other in a circle: {sorted(needs)}"
        needs = {name: wanted for name, wanted in needs.items() if name not in ready}


def module_name(path: Path) -> str:
    """tinyllm/kernels/jit.py → tinyllm.kernels.jit; a room's __init__ has the room's name."""
    dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return dotted.removesuffix(".__init__")


def test_modules_are_of_one_idea() -> None:
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in sources()}
    long = {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > 450}
    assert not long, f"cut these where their ideas end: {long}"


def test_only_the_api_knows_the_web() -> None:
    web = {"starlette", "uvicorn", "anyio", "httpcore2", "h11", "httpx", "fastapi"}
    knows = {path: third_party(path) & web for path in sources() if part(path) != "api"}
    assert not {path: names for path, names in knows.items() if names}


def test_the_core_needs_few_packages() -> None:
    beyond = {
        path: third_party(path) - set(CORE) - BEYOND_CORE.get(part(path), set())
        for path in sources()
        # A `__main__` is a program for a terminal, which no import reaches.
        if RANK.get(part(path), PROGRAMS) < PROGRAMS and path.name != "__main__.py"
    }
    assert not {path: names for path, names in beyond.items() if names}


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


def test_a_wheel_has_every_file_that_is_no_module() -> None:
    """What only a clone has is missing for whoever installs: a page, a list, a template."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"package-data\]\ntinyllm = \[(.*?)\]", project, re.DOTALL)
    assert listed
    patterns = re.findall(r'"([^"]+)"', listed[1])
    forgotten = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".md") and "__pycache__" not in path.parts
        if not any(path.relative_to(PACKAGE).match(pattern) for pattern in patterns)
    ]
    assert not forgotten


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
