"""Model folders from the Hugging Face hub, through its own client (`pip install 'tinyllm[hub]'`).

Only what a model folder needs is brought: JSON, the tokenizer, safetensors; or the one GGUF file
that is named (all parts of a split one), which is then converted. Never a pickle. The files of an
interrupted download stay in a hidden folder, from which the next run goes on; a model appears
under its name only when it is whole and fits its config.
"""

from __future__ import annotations

import difflib
import re
import shutil
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tinyllm.errors import FetchError, TinyllmError
from tinyllm.fetch import staging
from tinyllm.files.gguf import PART

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

REFERENCE = re.compile(
    r"hf:(?P<owner>[A-Za-z0-9][\w.-]*)/(?P<name>[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?"
    r"(:(?P<file>[\w.-]+(/[\w.-]+)*\.gguf))?",
    re.ASCII,
)
SMALL_FILES = re.compile(
    r"(config|generation_config|preprocessor_config|processor_config|tokenizer|tokenizer_config"
    r"|special_tokens_map|added_tokens)\.json|chat_template\.(jinja|json)"
)
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model[\w.-]*\.safetensors")


def ensure(reference: str, root: Path) -> Path:
    """The folder of `hf:OWNER/NAME[@REVISION][:FILE.gguf]` under `root`; fetched if it is missing.

    A folder that is there is taken as it is: no network is needed. Raises `FetchError`.
    """
    match = REFERENCE.fullmatch(reference)
    if match is None or ".." in reference:
        raise FetchError(
            f"{reference!r} is no hub model; write hf:OWNER/NAME, hf:OWNER/NAME@REV, or "
            "hf:OWNER/NAME:FILE.gguf for one file of it"
        )
    repo, revision = f"{match['owner']}/{match['name']}", match["revision"]
    label = f"{match['owner']}--{match['name']}" + (f"@{revision}" if revision else "")
    if match["file"]:
        label += "--" + match["file"].removesuffix(".gguf")
    folder = root / re.sub(r"[^\w.@-]", "-", label)
    if (folder / "card.json").is_file():
        return folder
    with staging.locked(folder):
        if not (folder / "card.json").is_file():
            if folder.exists():
                raise FetchError(f"{folder} is in the way: it has no card.json; move it elsewhere")
            _download(repo, revision, match["file"], folder)
    return folder


def _download(repo: str, revision: str | None, file: str | None, folder: Path) -> None:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise FetchError(
            "models from the hub need its client library: pip install 'tinyllm[hub]', "
            "or give the path of a folder that you downloaded"
        ) from None

    from tinyllm.fetch.convert import convert, write_json
    from tinyllm.fetch.validate import validate

    where = f"hf:{repo}" + (f"@{revision}" if revision else "")
    part = folder.with_name(f".{folder.name}.part")
    fetched = part if file is None else part / "fetched"
    try:
        info = huggingface_hub.HfApi().model_info(repo, revision=revision)
        names = [sibling.rfilename for sibling in info.siblings or []]
        files = _choose(where, names) if file is None else _parts(where, names, file)
        # `local_dir` keeps what was downloaded, so an interrupted run goes on where it stopped.
        huggingface_hub.snapshot_download(
            repo, revision=info.sha, allow_patterns=files, local_dir=fetched
        )
    except errors.GatedRepoError as error:
        remedy = "accept its terms on its page, then `hf auth login` or set HF_TOKEN"
        raise FetchError(f"{where} is gated: {remedy}") from error
    except errors.RepositoryNotFoundError as error:
        remedy = "check the name, or `hf auth login`"
        raise FetchError(f"{where} does not exist, or is private: {remedy}") from error
    except errors.RevisionNotFoundError as error:
        remedy = "give a branch, tag or commit"
        raise FetchError(f"{where}: there is no such revision; {remedy}") from error
    except FetchError:
        raise
    except Exception as error:  # the client's many ways to say that the line is down
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise FetchError(f"{where} refuses access: check your token, HF_TOKEN") from error
        raise FetchError(
            f"{where} could not be fetched ({type(error).__name__}: {str(error)[:200]}); check the "
            "connection and run this again: it goes on where it stopped"
        ) from error

    try:
        if file is not None:
            convert(fetched / files[0], part)
            shutil.rmtree(fetched)  # the weights have a name in the folder by now
        validate(part)
    except TinyllmError:
        shutil.rmtree(part)  # not a sound model: the next run begins anew
        raise
    card = _card(repo, folder.name, info, part)
    if file is not None:
        card |= {"source": f"{card['source']}:{file}", "aliases": [f"{repo}:{file}"]}
    write_json(part / "card.json", card)
    shutil.rmtree(part / ".cache", ignore_errors=True)  # the client's notes
    staging.flush(part)
    part.rename(folder)


def _choose(where: str, names: list[str]) -> list[str]:
    """Which files of the repository make up the model folder."""
    small = [name for name in names if SMALL_FILES.fullmatch(name)]
    if "config.json" not in small:
        raise FetchError(f"{where} has no config.json: it is no model in the transformers layout")
    if "model.safetensors" in names:
        return [*small, "model.safetensors"]
    if INDEX in names:
        return [*small, INDEX, *(name for name in names if SHARD.fullmatch(name))]
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    also = f" ({pickles[0]} is a pickle, and pickles are never opened)" if pickles else ""
    raise FetchError(f"{where} has no safetensors weights{also}; look for a converted revision")


def _parts(where: str, names: list[str], file: str) -> list[str]:
    """The named file of the repository, or all parts of the split one that it belongs to."""
    if file not in names:
        others = [name for name in names if name.endswith(".gguf")]
        near = difflib.get_close_matches(file, others, 1, 0) or ["none"]
        raise FetchError(f"{where} has no file {file}; the GGUF nearest to it there is {near[0]}")
    part = PART.fullmatch(PurePosixPath(file).name)
    if part is None:
        return [file]
    total = int(part["count"])
    head = file.removesuffix(f"{part['number']}-of-{part['count']}.gguf")
    parts = [f"{head}{i:05}-of-{part['count']}.gguf" for i in range(1, total + 1)]
    if missing := [name for name in parts if name not in names]:
        raise FetchError(f"{where} lacks a part of {file}: {missing[0]}")
    return parts


def _thinks(template: str) -> bool:
    """Whether a template has a place for thought: a block, or gpt-oss's channel."""
    return "<think>" in template or "<|channel|>analysis" in template


def _card(repo: str, name: str, info: ModelInfo, folder: Path) -> dict[str, Any]:
    from tinyllm.vision.whole import sees_images

    created = info.created_at if isinstance(info.created_at, datetime) else None
    license = info.card_data.get("license") if info.card_data else None
    texts = [
        path.read_text(encoding="utf-8", errors="replace")
        for path in (folder / "chat_template.jinja", folder / "tokenizer_config.json")
        if path.is_file()
    ]
    return {
        "id": name,
        "aliases": [repo],
        "kind": "vision" if sees_images(folder) else "text",
        "domain_aligned": False,
        "reasoning": "native" if any(map(_thinks, texts)) else "none",
        "license": license,
        "source": f"hf:{repo}@{info.sha}",
        "created": int(created.timestamp()) if created else 0,
    }
