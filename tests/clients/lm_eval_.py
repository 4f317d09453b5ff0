"""lm-eval: two small multiple-choice tasks through `local-completions`, to the runtime's own sums.

The tasks are made here, since theirs are fetched from a hub. What the harness sums up of a
continuation's tokens is compared with `own_scores.py`, which asks the runtime without any server.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import lm_eval
from checks import MODEL, URL, check, client, done
from lm_eval.tasks import TaskManager

client("lm_eval")
logging.disable(logging.WARNING)
TASKS = {
    "capitals": [
        ("The capital of France is", ["Paris", "Berlin", "Rome"], 0),
        ("The capital of Italy is", ["Madrid", "Rome", "Vienna"], 1),
        ("The capital of Germany is", ["Lisbon", "Oslo", "Berlin"], 2),
    ],
    "opposites": [
        ("The opposite of hot is", ["cold", "warm and pleasant"], 0),
        ("The opposite of up is", ["left", "down"], 1),
        ("The opposite of black is", ["white", "grey"], 0),
    ],
}
folder = tempfile.TemporaryDirectory()
for name, rows in TASKS.items():
    data = Path(folder.name, f"{name}.jsonl")
    lines = [json.dumps({"q": q, "choices": choices, "gold": gold}) for q, choices, gold in rows]
    data.write_text("\n".join(lines), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}],
    }
    Path(folder.name, f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML


@check("two multiple-choice tasks, log-likelihoods the runtime's own to 1e-6")
def _() -> None:
    results = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": MODEL,
            "base_url": f"{URL}/completions",
            "tokenizer_backend": "huggingface",
            "tokenizer": os.environ["TINYLLM_MODEL_FOLDER"],
        },
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=folder.name, include_defaults=False),
        bootstrap_iters=0,
    )
    pairs, found = [], []
    for name in TASKS:
        for sample in results["samples"][name]:
            for argument, response in zip(sample["arguments"], sample["resps"], strict=True):
                pairs.append(argument)
                found.append(float(response[0][0]))
    own = subprocess.run(
        [os.environ["TINYLLM_PYTHON"], "-m", "tests.clients.own_scores"],
        input=json.dumps(pairs), capture_output=True, text=True, check=True,
    )  # fmt: skip
    wanted = json.loads(own.stdout)
    assert len(found) == len(wanted) == 15
    assert all(abs(a - b) <= 1e-6 for a, b in zip(found, wanted, strict=True)), (found, wanted)
    assert results["results"]["capitals"]["acc,none"] == 1


done()
