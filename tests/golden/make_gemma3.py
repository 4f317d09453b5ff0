"""Make gemma3.json: `python -m tests.golden.make_gemma3 FOLDER LLAMA_SIMPLE`.

FOLDER is the model's (`tinyllm pull gemma3-270m`), LLAMA_SIMPLE the program of that name, of
llama.cpp's examples; torch and transformers have to be there. Both read FOLDER/model.gguf.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.golden.gemma3 import N_GREEDY, N_LOGITS, PATH, PROMPTS
from tests.reference.gemma3 import Reference
from tinyllm.tokenizer import Tokenizer


def main(folder: Path, llama_simple: str) -> None:
    """All prompts."""
    tokenizer, reference = Tokenizer.from_folder(folder), Reference(folder)
    entries: list[dict[str, Any]] = []
    for prompt in PROMPTS:
        command = [llama_simple, "-m", str(folder / "model.gguf"), "-n", str(N_GREEDY), prompt]
        run = subprocess.run(command, capture_output=True, check=True, text=True)
        begun = f"<bos>{prompt}"
        assert run.stdout.startswith(begun), run.stdout
        tokens = [*tokenizer.bos_ids, *tokenizer.encode(prompt)]
        logits = reference.next_logits(tokens)
        best = logits.argsort()[::-1][:N_LOGITS]
        entries.append(
            {
                "prompt": prompt,
                "tokens": tokens,
                "continued": run.stdout[len(begun) :].removesuffix("\n"),
                "logits": [[int(id), round(float(logits[id]), 6)] for id in best],
            }
        )
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    PATH.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
