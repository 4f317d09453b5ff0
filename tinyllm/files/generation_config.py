"""What a checkpoint's generation_config.json asks of sampling, where it has such a file.

The format is transformers' (`GenerationConfig`). Taken are the keys that the sampler knows; what
ends an answer is read from the same file by `text/folder.py`. `do_sample` says whether
transformers draws at all: a server's clients say that by temperature, so it is left aside.
"""

from __future__ import annotations

from pathlib import Path

from tinyllm.config import read_json_object

FILE = "generation_config.json"
KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def sampling_defaults(folder: Path) -> dict[str, float]:
    """The keys that the file has, null left out; {} without a file. ConfigError if it isn't JSON.

    The values are as they stand there: `SamplingParams` checks them.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    told = read_json_object(path)
    return {key: told[key] for key in KEYS if told.get(key) is not None}
