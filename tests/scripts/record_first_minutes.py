"""The picture in README.md: clone → answer, as it really goes, with the seconds that it took.

    python -m tests.scripts.record_first_minutes [OUT.svg]

Runs README's first command in a fresh clone and a fresh virtual environment, asks the server one
question, and draws what was typed and shown. Weights are fetched and kernels compiled, as they are
for somebody who starts with nothing.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "notebooks" / "images" / "first-minutes.svg"
PORT = 8000
QUESTION = """curl -s localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{
  "model": "smollm2-135m-instruct", "temperature": 0,
  "messages": [{"role": "user", "content": "What is the capital of France?"}]}'"""


class Recording:
    """What was typed and shown, and when."""

    def __init__(self) -> None:
        self.console = Console(record=True, width=96, file=io.StringIO())
        self.begun = time.monotonic()

    def typed(self, command: str) -> None:
        first, *rest = command.splitlines()
        self.console.print(Text(f"$ {first}", style="bold"))
        for line in rest:
            self.console.print(Text(f"  {line}", style="bold"))

    def shown(self, text: str) -> None:
        self.console.print(Text(text))

    def after(self, what: str) -> None:
        seconds = time.monotonic() - self.begun
        self.console.print(Text(f"— {what}, {seconds:.0f} s after the clone began", style="dim"))


def record(picture: Path) -> None:
    """Run it all and write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        work, recording = Path(folder), Recording()
        ours = ("TINYLLM", "PYTHON", "NUMBA")
        env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
        env["PATH"] = f"{work / 'venv' / 'bin'}{os.pathsep}{env['PATH']}"
        subprocess.run([sys.executable, "-m", "venv", str(work / "venv")], check=True)

        recording.begun = time.monotonic()
        recording.typed("git clone https://…/tinyllm && cd tinyllm")
        subprocess.run(["git", "clone", "-q", str(ROOT), str(work / "tinyllm")], check=True)
        recording.typed("pip install -q . && python server.py")
        subprocess.run(
            ["pip", "install", "-q", "."], cwd=work / "tinyllm", env=env, check=True,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        server = subprocess.Popen(
            [work / "venv" / "bin" / "python", "server.py"],
            cwd=work / "tinyllm", env=env, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            assert server.stdout is not None
            for line in server.stdout:
                recording.shown(line.strip().replace(folder, "…"))
                if "ready on" in line:
                    break
            recording.after("ready")
            recording.typed(QUESTION)
            answer = subprocess.run(
                ["bash", "-c", QUESTION], capture_output=True, text=True, check=True
            )
            recording.shown(answer.stdout)
            recording.after("answered")
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()
    picture.parent.mkdir(exist_ok=True)
    svg = recording.console.export_svg(title="tinyllm")
    svg = re.sub(r"@font-face {.*?}\s*", "", svg, flags=re.DOTALL)  # they are elsewhere on the web
    picture.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    record(Path(sys.argv[1]) if sys.argv[1:] else PICTURE)
