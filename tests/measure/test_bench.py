"""The benchmark's shape and its honesty; never its speed."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tinyllm.config import ModelConfig
from tinyllm.errors import TinyllmError
from tinyllm.measure import bench
from tinyllm.terminal.cli import app

PEER = """#!{python}
import json, sys
args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "-m" in args:
    print(json.dumps([{{"n_prompt": int(args["-p"]), "avg_ts": 400.0}},
                      {{"n_prompt": 0, "avg_ts": 50.0}}]))
"""


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    path = tmp_path / "llama-bench"
    path.write_text(PEER.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_json(weights_folder: Path, peer: Path, tmp_path: Path) -> None:
    gguf = tmp_path / "peer.gguf"
    gguf.touch()
    command = ["bench", "--model", str(weights_folder), "--dtype", "q8", "--threads", "2"]
    command += ["--prefill", "16", "--decode", "4", "--batch", "2", "--rounds", "1", "--json"]
    command += ["--peer", f"llama-bench={peer}", "--peer-model", str(gguf)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert (result["dtype"], result["threads"]) == ("q8", 2)
    for name in ("decode", "prefill", "batch_decode"):
        assert result[f"{name}_tokens_per_s"] > 0
    read = result["bytes_per_token"] * result["decode_tokens_per_s"] / 1e9
    assert result["read_gb_per_s"] == pytest.approx(read)
    assert {op["operation"] for op in result["operations"]} == {
        "qkv", "out", "gate_up", "down", "head",
    }  # fmt: skip
    compared = result["peers"]["peer.gguf"]
    assert compared["decode_ratio"] == pytest.approx(result["decode_tokens_per_s"] / 50)
    assert compared["prefill_ratio"] == pytest.approx(result["prefill_tokens_per_s"] / 400)


def test_what_a_token_reads_and_computes(weights_folder: Path) -> None:
    """By hand: 106 million weights in the layers, two operations each."""
    config = ModelConfig.from_folder(weights_folder)
    layer = 576 * (576 + 192 + 192 + 576) + 3 * 576 * 1536
    assert bench.matrix_operations(config) == 2 * 30 * layer


def test_a_failing_peer_is_named(tmp_path: Path) -> None:
    options = bench.BenchOptions(peer=tmp_path / "missing", peer_models=[tmp_path / "x.gguf"])
    with pytest.raises(TinyllmError, match="missing"):
        bench.time_peer(options, tmp_path / "x.gguf")


def test_options_are_checked() -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["bench", "--dtype", "q5"]).exit_code == 2
    assert runner.invoke(app, ["bench", "--peer", "other=/x"]).exit_code == 2


def test_a_slow_processor_has_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round of 15 seconds: a third one would end after 45; three are made if they are wished."""
    now = [0.0]
    monkeypatch.setattr(bench.time, "monotonic", lambda: now[0])
    for asked, made in ((None, 2), (3, 3)):
        made_here = 0
        for _ in bench.rounds_of(bench.BenchOptions(rounds=asked)):
            made_here += 1
            now[0] += 15
        assert made_here == made
