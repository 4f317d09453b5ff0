"""Answers kept: what counts as the same answer, ours and a peer's."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fake_runner import FakeRunner, fake_logits
from tinyllm.errors import TinyllmError
from tinyllm.measure import answers
from tinyllm.measure.answers import Answer, Kept, compare


def test_a_hundred_questions() -> None:
    asked = answers.questions()
    assert len(asked) == len(set(asked)) == 100
    assert asked[0] == "What is the capital of France?"


def test_answers_are_the_greedy_loops() -> None:
    asked = [[1, 2, 3], [4], [5, 6]]
    for ids, answer in zip(asked, answers.answers(FakeRunner(), asked, [0]), strict=True):
        want: list[int] = []
        while len(want) < answers.N_TOKENS and want[-1:] != [0]:
            want.append(int(fake_logits(np.array([*ids, *want], np.int64)).argmax()))
        assert answer.tokens == want
        assert [best[0][0] for best in answer.best] == want


def test_a_near_tie_is_counted_apart() -> None:
    best = [[(7, -0.1), (8, -3.0)], [(5, -1.0), (6, -1.00005), (9, -1.5)]]
    true = [Answer([7, 5], best)]
    assert compare(true, [[7, 5]]) == Kept(same=1, near=0, questions=1)
    assert compare(true, [[7, 6]]) == Kept(same=0, near=1, questions=1)
    assert compare(true, [[7, 9]]) == compare(true, [[8, 5]]) == Kept(0, 0, 1)
    assert compare(true, [[7]]) == compare(true, [[7, 5, 3]]) == Kept(0, 0, 1)


SERVER = """#!{python}
import http.server, json, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def reply(self, body):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def do_GET(self):
        self.reply({{"status": "ok"}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert body["temperature"] == 0 and body["n_predict"] == 40
        self.reply({{"tokens": [sum(body["prompt"])], "stop_type": "eos"}})

    def log_message(self, *_):
        pass

port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def test_a_peer_is_asked_over_its_server(tmp_path: Path) -> None:
    server = tmp_path / "llama-server"
    server.write_text(SERVER.format(python=sys.executable))
    server.chmod(server.stat().st_mode | stat.S_IXUSR)
    said = answers.peer_answers(server, tmp_path / "m.gguf", [[1, 2], [0]], [0], 1)
    assert said == [[3, 0], [0]]


def test_a_peer_that_does_not_start_is_named(tmp_path: Path) -> None:
    server = tmp_path / "llama-server"
    server.write_text(f"#!{sys.executable}\nraise SystemExit(1)\n")
    server.chmod(server.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(TinyllmError, match="llama-server didn't come up"):
        answers.peer_answers(server, tmp_path / "m.gguf", [[1]], [0], 1)
