"""inspect-ai: an evaluation with `openai/ID`, on /responses and on chat completions."""

from __future__ import annotations

import os
import tempfile

from checks import MODEL, QUESTION, check, client, done
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import get_model
from inspect_ai.scorer import includes

client("inspect_ai")
logs = tempfile.TemporaryDirectory()
task = Task(dataset=[Sample(input=QUESTION, target="Paris")], scorer=includes())


def score(responses: bool) -> None:
    """Paris is named, and no sample failed."""
    model = get_model(
        f"openai/{MODEL}",
        base_url=os.environ["OPENAI_BASE_URL"],
        api_key="unused",
        responses_api=responses,
    )
    (log,) = eval(
        task, model=model, temperature=0, max_tokens=40, log_dir=logs.name, display="none"
    )
    assert log.status == "success" and log.results is not None, log.error
    assert log.results.scores[0].metrics["accuracy"].value == 1


@check("`openai/ID` on /responses")
def _() -> None:
    score(responses=True)


@check("on chat completions")
def _() -> None:
    score(responses=False)


done()
