"""Tests, file by file as tinyllm/ is."""

import os

# Two threads of a matrix product wait for each other busily: where others want the cores as well,
# products take ten times as long as on one thread.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
