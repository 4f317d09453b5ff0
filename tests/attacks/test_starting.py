"""Starting, stopping and running short: what is said, and how it goes on. And a page that tries."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.support import PATIENCE, ask, chat, polite
from tests.load import servers

pytestmark = pytest.mark.attacks


@contextlib.contextmanager
def started(weights: Path, before: str = "true") -> Iterator[servers.Server]:
    """A server behind a shell's command, such as a limit."""
    port = servers.free_port()
    command = f"exec {sys.executable} server.py --port {port} --model {weights} --access-log off"
    server = servers.Server("tinyllm", ["bash", "-c", f"{before}; {command}"], port)
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


def test_control_c_says_at_once_what_it_waits_for(weights_folder: Path) -> None:
    with started(weights_folder) as server:
        told: list[bytes] = []

        def read_a_story() -> None:
            body = chat("A story.", max_tokens=3000, stream=True, logit_bias={"2": -100})
            with contextlib.suppress(OSError, http.client.HTTPException):
                told.append(ask(server.port, body)[1])

        asked = [threading.Thread(target=read_a_story) for _ in range(3)]
        for thread in asked:
            thread.start()
        time.sleep(2)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        said = "stopping; 3 requests that run may take 30 s more, a second signal ends it"
        assert said in server.log()
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        server.process.wait(20)
        for thread in asked:
            thread.join(20)
        assert "Traceback" not in server.log()
        for stream in told:  # those that were told: at the end, with an error event
            assert stream.rstrip().endswith(b"[DONE]") and b'"error"' in stream[-1000:]


def test_few_descriptors_are_never_all_taken(weights_folder: Path) -> None:
    """What has no place is refused before descriptors run out: then nobody would be let in."""
    held: list[socket.socket] = []
    with started(weights_folder, "ulimit -n 160") as server:
        try:
            with polite(server) as seen:
                for i in range(600):
                    own = f"127.0.1.{i % 100 + 1}"
                    connection = socket.create_connection(("127.0.0.1", server.port), 5, (own, 0))
                    connection.setblocking(False)
                    held.append(connection)
                time.sleep(3)
            seen.report("600 connections, 160 descriptors")
            assert set(seen.statuses) <= {200, 503} and max(seen.waits) < PATIENCE
            assert "Too many open files" not in server.log(), server.log()[:2000]
            refused = 0
            for connection in held:
                with contextlib.suppress(BlockingIOError):
                    refused += connection.recv(100).startswith(b"HTTP/1.1 503")
            print(f"{refused} of {len(held)} connections refused, {len(server.log())} bytes of log")
            assert refused > 50
        finally:
            for connection in held:
                connection.close()
        end = time.monotonic() + 15  # those that still waited to be accepted come first
        while (status := ask(server.port, chat())[0]) == 503 and time.monotonic() < end:
            time.sleep(0.5)
        assert status == 200


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--access-log", "/nonexistent/x"), "--access-log /nonexistent/x"),
        (("--api-key", ""), "--api-key is blank"),
        (("--access-log", "/tmp"), "--access-log /tmp: Is a directory"),
        (("--api-key-file", "/nonexistent"), "--api-key-file /nonexistent"),
        (("--model", "/proc/1/root"), "can't be served"),
        (("--model", "/etc/passwd"), "/etc/passwd is not a model"),
        (("--host", "203.0.113.9", "--api-key", "x"), "doesn't have that address"),
    ],
)
def test_what_is_wrong_is_one_sentence(flags: tuple[str, ...], words: str) -> None:
    command = [sys.executable, "server.py", "--port", "0", *flags]
    ended = subprocess.run(command, cwd=servers.ROOT, capture_output=True, text=True, timeout=60)
    said = (ended.stdout + ended.stderr).strip()
    assert ended.returncode != 0 and words in said
    assert "Traceback" not in said and said.count("\n") == 0, said


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "server.py", "--port", str(port)]
        ended = subprocess.run(command, cwd=servers.ROOT, capture_output=True, text=True)
    said = (ended.stdout + ended.stderr).strip()
    assert ended.returncode == 1 and f"can't listen on 127.0.0.1 port {port}: another" in said
    assert said.count("\n") == 0, said


PAGE = """<!doctype html><body><script>
const server = "http://127.0.0.1:PORT", body = JSON.stringify(CHAT), out = [];
const tries = {
  simple: () => fetch(server + "/v1/chat/completions", {method: "POST", mode: "no-cors", body}),
  json: () => fetch(server + "/v1/chat/completions",
    {method: "POST", body, headers: {"Content-Type": "application/json"}}),
  read: () => fetch(server + "/v1/models"),
  remove: () => fetch(server + "/v1/sessions/x", {method: "DELETE"}),
};
(async () => {
  for (const [name, go] of Object.entries(tries)) {
    try { const r = await go(); out.push(name + ":" + r.type + ":" + r.status); }
    catch (error) { out.push(name + ":blocked"); }
  }
  document.body.innerHTML = "<p>" + out.join(" ") + "</p>";
})();
</script></body>"""


@contextlib.contextmanager
def page_on_another_port(port: int) -> Iterator[str]:
    """A page that tries to use the server, as any page on the web could."""
    content = PAGE.replace("PORT", str(port)).replace("CHAT", json.dumps(chat())).encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://localhost:{web.server_port}/"
        web.shutdown()


def dom(url: str) -> str:
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        command = ["chromium", *options, "--virtual-time-budget=8000", "--dump-dom", url]
        return subprocess.run(command, capture_output=True, text=True, timeout=90).stdout


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the extra program chromium")
def test_a_page_in_a_browser_gets_nothing(server: servers.Server) -> None:
    def accepted() -> bytes:
        metrics = ask(server.port, None, "/metrics")[1]
        return b"".join(line for line in metrics.splitlines() if b"tinyllm_requests_total" in line)

    before = accepted()
    with page_on_another_port(server.port) as url:
        seen = dom(url)
    print(seen[seen.find("<p>") : seen.find("</p>")])
    # A simple request is sent, but refused; its answer can't be read. All others are blocked.
    assert "<p>simple:opaque:0 json:blocked read:blocked remove:blocked</p>" in seen
    assert accepted() == before  # the engine was asked for nothing
