"""The page's filters are the sampler's: one table of cases, both languages."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyllm.distribution import Distribution
from tinyllm.inside.look import logits_in_short
from tinyllm.sampler import Sampler, SamplingParams, best_ids

MODULE = Path(__file__).parents[2] / "tinyllm" / "api" / "web" / "sampler.js"
TIES = np.array([1, 3, 3, 0, 3, -2, 1], np.float32)
CASES = [
    (logits, {"temperature": t, "top_k": k, "top_p": p})
    for logits in (TIES, np.random.default_rng(3).normal(0, 3, 200).astype(np.float32))
    for t in (0.0, 0.3, 1.0, 2.0)
    for k in (0, 1, 3, 50)
    for p in (0.0, 0.5, 0.9, 1.0)
]
RUN = """
const { filtered } = await import(process.argv[1]);
const cases = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(cases.map((c) => filtered(c.ids, c.logits, c.tail, c.params))));
"""


def in_node(cases: list[dict[str, Any]]) -> list[Any]:
    node = shutil.which("node")
    assert node, "node is needed: apt-get install nodejs"
    script = f"(async () => {{ {RUN} }})()"
    done = subprocess.run(
        [node, "--no-warnings", "--experimental-default-type=module", "--input-type=commonjs",
         "-e", script, MODULE.as_uri()],
        input=json.dumps(cases), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return list(json.loads(done.stdout))


def test_the_same_tokens_are_cut_by_the_same_filters() -> None:
    asked = []
    for logits, params in CASES:
        ids = best_ids(logits, 256)
        values = [float(x) for x in logits[ids]]
        asked.append({"ids": ids.tolist(), "logits": values, "tail": None, "params": params})
    for (logits, params), got in zip(CASES, in_node(asked), strict=True):
        expected = Distribution(logits, Sampler(SamplingParams(seed=0, **params))).best(256)
        assert got["complete"]
        for mine, theirs in zip(got["tokens"], expected, strict=True):
            assert (mine["id"], mine["cutBy"]) == (theirs.token, theirs.cut_by), params
            assert mine["pRaw"] == pytest.approx(theirs.p_raw, abs=1e-6)
            assert mine["p"] == pytest.approx(theirs.p, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_a_histogram_stands_for_the_rest(temperature: float) -> None:
    logits = np.random.default_rng(5).normal(0, 2, 49152).astype(np.float32)
    ids = best_ids(logits, 256)
    params = {"temperature": temperature, "top_k": 0, "top_p": 1.0}
    (got,) = in_node([{
        "ids": ids.tolist(), "logits": [float(x) for x in logits[ids]],
        "tail": logits_in_short(logits)["tail"], "params": params,
    }])  # fmt: skip
    best = Distribution(logits, Sampler(SamplingParams(seed=0, **params))).best(1)[0]
    assert not got["complete"]
    assert got["tokens"][0]["p"] == pytest.approx(best.p, abs=2.5e-4)
