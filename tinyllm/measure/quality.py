"""`tinyllm quality`: what a weight format costs, on real text and in answers, against float32.

The text is CPython's own manual as its help system ships it (`pydoc_data`), so everybody has it. It
is cut into windows of 512 tokens; the second half of each is scored, as llama.cpp's
`llama-perplexity` does, so that its formats can stand in the same table.
"""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tinyllm.compiled import CompiledModel
from tinyllm.config import ModelConfig
from tinyllm.errors import TinyllmError
from tinyllm.kernels.formats import FORMATS
from tinyllm.measure import answers
from tinyllm.runner import Segment
from tinyllm.tokenizer import Tokenizer

WINDOW = 512  # tokens; the first half is context alone


@dataclass
class Quality:
    """One format against float32 of the same program.

    `kl` is Σ p (log p - log q) a token, in nats, p being float32's distribution.
    """

    name: str
    perplexity: float
    mean_kl: float
    p99_kl: float
    top1: float  # share of tokens whose likeliest successor is the same
    kept: answers.Kept | None = None

    @classmethod
    def of(cls, name: str, losses: list[float], kl: list[float], same: list[bool]) -> Quality:
        """Sum up one format's tokens."""
        perplexity = math.exp(float(np.mean(losses)))
        p99 = float(np.quantile(kl, 0.99))
        return cls(name, perplexity, float(np.mean(kl)), p99, float(np.mean(same)))


def sample_text() -> str:
    """CPython's manual topics, in order of their names; about half a megabyte."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip() for name in sorted(topics))


def windows(tokens: NDArray[np.int32], n_scored: int) -> Iterator[NDArray[np.int32]]:
    """As many whole windows as it takes to score `n_scored` tokens."""
    needed = -(-n_scored // (WINDOW // 2 - 1))
    if len(tokens) < needed * WINDOW:
        raise TinyllmError(
            f"the text has {len(tokens)} tokens; scoring {n_scored} takes {needed * WINDOW}"
        )
    for i in range(needed):
        yield tokens[i * WINDOW : (i + 1) * WINDOW]


def measure(
    folder: Path,
    tokens: NDArray[np.int32],
    n_scored: int,
    threads: int,
    progress: Callable[[str], None],
    formats: Sequence[str] = tuple(FORMATS),
) -> list[Quality]:
    """Our formats, each against our own float32."""
    config = ModelConfig.from_folder(folder)
    models = {
        dtype: CompiledModel(config, folder, dtype, threads, kv_cache_mb=64)
        for dtype in dict.fromkeys(("f32", *formats))
    }
    losses: dict[str, list[float]] = {dtype: [] for dtype in models}
    kl: dict[str, list[float]] = {dtype: [] for dtype in models}
    same: dict[str, list[bool]] = {dtype: [] for dtype in models}
    for i, window in enumerate(windows(tokens, n_scored)):
        progress(f"window {i + 1}, {len(losses['f32'])} tokens scored")
        following = window[WINDOW // 2 + 1 :]
        true = best = None
        for dtype, model in models.items():
            log_q = log_softmax(second_half(model, window))
            if dtype == "f32":
                true, best = log_q, log_q.argmax(axis=1)
            assert true is not None
            losses[dtype].extend(-log_q[np.arange(len(following)), following])
            kl[dtype].extend((np.exp(true) * (true - log_q)).sum(axis=1, dtype=np.float64))
            same[dtype].extend(log_q.argmax(axis=1) == best)
    found = {d: Quality.of(d, losses[d], kl[d], same[d]) for d in models}
    tokenizer = Tokenizer.from_folder(folder)
    asked = answers.prompts(tokenizer, answers.questions())
    expected: list[answers.Answer] = []
    for dtype, model in models.items():
        progress(f"answering {len(asked)} questions in {dtype}")
        said = answers.answers(model, asked, tokenizer.eos_ids)
        expected = expected or said  # float32 comes first
        found[dtype].kept = answers.compare(expected, [answer.tokens for answer in said])
    return list(found.values())


def second_half(model: CompiledModel, window: NDArray[np.int32]) -> NDArray[np.float32]:
    """Logits that predict the tokens of the second half, but for its first."""
    cache = model.new_cache(WINDOW)
    half = WINDOW // 2
    try:
        model.forward_batch([Segment(window[:half], cache, "none")])
        return model.forward_batch([Segment(window[half:-1], cache, "all")])[0]
    finally:
        cache.free()


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Row by row; sums in float64."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, dtype=np.float64, keepdims=True)
    result: NDArray[np.float32] = (shifted - np.log(total)).astype(np.float32)
    return result


# --- a peer -------------------------------------------------------------------------------------

PATTERNS = {
    "perplexity": r"Mean PPL\(Q\)\s*:\s*([\d.]+)",
    "mean_kl": r"Mean\s+KLD:\s*([-\d.]+)",
    "p99_kl": r"99\.0%\s+KLD:\s*([-\d.]+)",
    "top1": r"Same top p:\s*([\d.]+)",
}


def measure_peer(
    program: Path,
    base: Path,
    models: Sequence[Path],
    text: str,
    n_scored: int,
    threads: int,
    progress: Callable[[str], None],
) -> list[Quality]:
    """llama.cpp's formats, GGUF files, against its own float32 (`base`), on the same text."""
    chunks = -(-n_scored // (WINDOW // 2 - 1))
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        source, logits = Path(scratch, "text.txt"), Path(scratch, "logits.bin")
        source.write_text(text, encoding="utf-8")
        common = ["-f", str(source), "-c", str(WINDOW), "-t", str(threads)]
        common += ["--chunks", str(chunks), "--kl-divergence-base", str(logits)]
        progress(f"llama.cpp {base.name}")
        _run([str(program), "-m", str(base), *common])
        for path in models:
            progress(f"llama.cpp {path.name}")
            output = _run([str(program), "-m", str(path), *common, "--kl-divergence"])
            values: dict[str, Any] = {}
            for name, pattern in PATTERNS.items():
                match = re.search(pattern, output)
                if match is None:
                    raise TinyllmError(f"{program.name} printed no {name}: {output[-500:]}")
                values[name] = float(match[1])
            values["top1"] /= 100
            found.append(Quality(f"llama.cpp {path.stem}", **values))
    return found


def add_peer_answers(
    server: Path,
    base: Path,
    models: Sequence[Path],
    rows: Sequence[Quality],
    folder: Path,
    threads: int,
    progress: Callable[[str], None],
) -> None:
    """Answers kept by llama.cpp's formats, `rows`, against its own float32."""
    tokenizer = Tokenizer.from_folder(folder)
    asked, stop_ids = answers.prompts(tokenizer, answers.questions()), tokenizer.eos_ids
    said = {}
    for path in (base, *models):
        progress(f"llama.cpp {path.name} answers {len(asked)} questions")
        said[path] = answers.peer_answers(server, path, asked, stop_ids, threads)
    true = [answers.Answer(tokens) for tokens in said[base]]  # it tells of no near ties
    for path, row in zip(models, rows, strict=True):
        row.kept = answers.compare(true, said[path])


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        raise TinyllmError(f"{' '.join(command)} failed: {detail.strip()[-500:]}") from None
    return done.stdout + done.stderr


# --- together -----------------------------------------------------------------------------------


def run(
    folder: Path,
    n_scored: int,
    threads: int,
    progress: Callable[[str], None],
    program: Path | None = None,
    base: Path | None = None,
    models: Sequence[Path] = (),
) -> dict[str, Any]:
    """The whole table, as a JSON-able dictionary."""
    text = sample_text()
    tokens = np.array(Tokenizer.from_folder(folder).encode(text), np.int32)
    rows = measure(folder, tokens, n_scored, threads, progress)
    if program is not None and base is not None:
        rows += measure_peer(program, base, models, text, n_scored, threads, progress)
        server = program.with_name("llama-server")
        if server.is_file():
            peers = rows[len(rows) - len(models) :]
            add_peer_answers(server, base, models, peers, folder, threads, progress)
    return {"tokens": n_scored, "window": WINDOW, "formats": [asdict(row) for row in rows]}


def _kept(kept: dict[str, int] | None) -> str:
    """An `answers.Kept` as text."""
    if kept is None:
        return ""
    near = f" (+ {kept['near']} near ties)" if kept["near"] else ""
    return f"{kept['same']} of {kept['questions']}{near}"


def print_result(result: dict[str, Any], console: Console) -> None:
    """The same for people."""
    table = Table("format", "perplexity", "mean KL", "99 % KL", "same top token", "answers kept")
    for row in result["formats"]:
        table.add_row(
            row["name"], f"{row['perplexity']:.4f}", f"{row['mean_kl']:.6f}",
            f"{row['p99_kl']:.5f}", f"{row['top1']:.2%}", _kept(row["kept"]),
        )  # fmt: skip
    console.print(table)
    console.print(
        f"at least {result['tokens']} tokens of CPython's manual, the second half of each window "
        f"of {result['window']}; KL in nats from float32 of the same program; answers are greedy, "
        f"of {answers.N_TOKENS} tokens at most, kept if float32 of the same program gives them too"
    )
