"""Run every client against one server, and hold the table of the API's page to what came of it.

    python -m tests.clients.run             # all; exit status 1 if anything fails
    python -m tests.clients.run llm DSPy    # some
    python -m tests.clients.run --write     # and write the table anew
    python -m tests.clients.run --install   # only make the environments

Each client has a script beside this file and runs in an environment that holds clients alone, made
by uv and npm in a temporary folder (or in $TINYLLM_CLIENTS, which is kept). A script says in a line
of JSON what each of its checks came to (`checks.py`, `checks.mjs`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.clients.clients import (
    CLIENTS,
    ENVIRONMENTS,
    NODE,
    PROMPTFOO,
    PROMPTFOO_PACKAGES,
    Client,
)
from tests.load import servers
from tinyllm.fetch import catalog, resolve

HERE = Path(__file__).parent
PAGE = Path(__file__).parents[2] / "tinyllm/api/README.md"
BEGIN, END = "<!-- clients: python -m tests.clients.run --write -->\n", "<!-- /clients -->"
LIMIT = 300  # seconds a client
ALIASES = ("gpt-3.5-turbo", "gpt-3.5-turbo-instruct")  # names that a client can't do without
QUIET = {  # no client may wait for a network that isn't there
    "OPENAI_API_KEY": "unused", "PYTHONWARNINGS": "ignore", "DO_NOT_TRACK": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_AGENTS_DISABLE_TRACING": "1",
}  # fmt: skip


def make_environment(folder: Path, name: str) -> Path:
    """The Python (or node) of an environment, made if it isn't there."""
    if name == NODE:
        return make_node(folder / name)
    if name == PROMPTFOO:
        return make_promptfoo(folder / name, make_node(folder / NODE))
    python = folder / name / "bin" / "python"
    if not python.exists():
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", folder / name], check=True)
        install = [*uv, "pip", "install", "--quiet", "--python", python, *ENVIRONMENTS[name]]
        subprocess.run(install, check=True)
    return python


def make_node(folder: Path) -> Path:
    """A folder with the scripts, the packages beside them, and a node that is new enough."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "package.json", folder)
    copy_scripts(folder)
    node = folder / "node_modules" / ".bin" / "node"
    if not node.exists():
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund"]
        subprocess.run(npm, cwd=folder, check=True)
    return node


def make_promptfoo(folder: Path, node: Path) -> Path:
    """A folder with the scripts and promptfoo beside them; the node that runs it."""
    folder.mkdir(parents=True, exist_ok=True)
    copy_scripts(folder)
    if not (folder / "node_modules" / "promptfoo").exists():
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--omit=optional",
               "--omit=dev", "--ignore-scripts", *PROMPTFOO_PACKAGES]  # fmt: skip
        subprocess.run(npm, cwd=folder, check=True)
    return node


def copy_scripts(folder: Path) -> None:
    """Imports are looked up from where a script is."""
    for file in HERE.glob("*.mjs"):
        shutil.copy(file, folder)


def run(client: Client, folder: Path, url: str) -> list[dict[str, Any]]:
    """What a client's script says, a line each; a script that breaks off says so."""
    of_npm = client.environment in (NODE, PROMPTFOO)
    here = folder / client.environment if of_npm else HERE
    command = [make_environment(folder, client.environment), here / client.script]
    environment = {
        **os.environ, **QUIET, "OPENAI_BASE_URL": url, "OPENAI_API_BASE": url,
        "TINYLLM_MODEL": catalog.DEFAULT, "TINYLLM_VISION": catalog.DEFAULT_VISION,
        "TINYLLM_MODEL_FOLDER": str(resolve(catalog.DEFAULT)), "TINYLLM_PYTHON": sys.executable,
        "NODE_MODULES": str(here / "node_modules"),
    }  # fmt: skip
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return [{"check": "the script", "ok": False, "why": f"took longer than {LIMIT} s"}]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode and all(line.get("ok", True) for line in lines):
        lines.append({"check": "the script", "ok": False, "why": done.stderr[-2000:]})
    held = [line["ok"] for line in lines if "ok" in line]
    took = time.monotonic() - start
    print(f"{client.title}: {sum(held)} of {len(held)} in {took:.0f} s", flush=True)
    return lines


def row(client: Client, lines: Sequence[dict[str, Any]]) -> str:
    """A client's row of the table."""
    version = next((line["version"] for line in lines if "version" in line), "?")
    checks = [line["check"] + ("" if line["ok"] else " **fails**") for line in lines[1:]]
    return f"| {client.title} {version} | {client.pointed} | {'; '.join(checks)} |\n"


def main(arguments: Sequence[str]) -> int:
    """Run them, say what fails, and compare or write the table."""
    wanted = [argument for argument in arguments if not argument.startswith("-")]
    chosen = [client for client in CLIENTS if not wanted or client.title in wanted]
    options = [word for name in ALIASES for word in ("--alias", f"{name}={catalog.DEFAULT}")]
    options += ["--temperature", "0"]  # the same answers each time, where a client names none
    options += ["--ignore-tool", "web_search"]  # Codex sends one, which its OpenAI runs
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(os.environ.get("TINYLLM_CLIENTS", made)).resolve()
        for name in sorted({client.environment for client in chosen}):
            make_environment(folder, name)
        if "--install" in arguments:
            return 0
        server = stack.enter_context(servers.tinyllm(*options))
        url = f"http://127.0.0.1:{server.port}/v1"
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda client: run(client, folder, url), chosen))
    table = "| client | pointed here by | what is held |\n|---|---|---|\n"
    failed = 0
    for client, lines in zip(chosen, found, strict=True):
        table += row(client, lines)
        for line in lines:
            if not line.get("ok", True):
                failed += 1
                print(f"{client.title}: {line['check']}\n{line['why']}")
    print(table)
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    old, after = rest.split(END)
    if "--write" in arguments:
        PAGE.write_text(before + BEGIN + table + END + after, encoding="utf-8")
    elif not wanted and old != table:
        print(f"The table of {PAGE.name} says otherwise: --write makes it anew.")
        failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
