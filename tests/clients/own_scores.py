"""The runtime's own log-likelihoods, without a server: pairs of texts in, a sum of logs a pair out.

    echo '[["The capital of France is", " Paris"]]' | python -m tests.clients.own_scores

A pair is a context and its continuation. Where the context ends is counted in the tokens of the
context alone, as lm-eval counts it.
"""

from __future__ import annotations

import json
import sys

import numpy as np

import tinyllm
from tinyllm.runner import Segment
from tinyllm.sampler import log_normalizer


def main() -> None:
    lm = tinyllm.load(backend="compiled")  # in the server's own format: auto
    sums = []
    for context, continuation in json.load(sys.stdin):
        ids = lm.tokenizer.encode(context + continuation)
        start = len(lm.tokenizer.encode(context))
        [logits] = lm.runner.forward_batch(
            [Segment(np.array(ids, np.int32), lm.runner.new_cache(len(ids)), "all")]
        )
        rows = range(start, len(ids))
        sums.append(sum(float(logits[i - 1][ids[i]]) - log_normalizer(logits[i - 1]) for i in rows))
    json.dump(sums, sys.stdout)


if __name__ == "__main__":
    main()
