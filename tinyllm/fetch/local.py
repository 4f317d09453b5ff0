"""What is on this machine: the models under the weights root, what they take, and removing one."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyllm import fetch
from tinyllm.config import read_json_object
from tinyllm.errors import ConfigError, FetchError
from tinyllm.fetch import catalog, staging

PACKED = ".packed"  # beside a checkpoint: the same weights in the kernels' layout


@dataclass(frozen=True)
class LocalModel:
    """One model's folder.

    Attributes:
        name: the folder's name, by which `tinyllm.load` finds it.
        card: card.json; empty where the folder has none.
        weight_bytes: of the checkpoint's files.
        packed_bytes: of the kernels' copies, which are made again when they are missing.
    """

    name: str
    folder: Path
    card: dict[str, Any] = field(repr=False)
    weight_bytes: int
    packed_bytes: int

    @property
    def is_carried(self) -> bool:
        """Whether it came with tinyllm's repository, and so isn't ours to remove."""
        return "parts" in self.card


def models() -> list[LocalModel]:
    """Every model under the weights root, by name."""
    root = fetch.weights_root()
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [_local_model(folder) for folder in folders if _is_model(folder)]


def get(name: str) -> LocalModel:
    """The model of that folder name, catalog name or alias.

    Raises:
        FetchError: it isn't here; the message has the nearest name that is.
    """
    package = catalog.find(name) or catalog.find_assembled(name)
    wanted = package.name if package else name
    here = {model.name: model for model in models()}
    if wanted in here:
        return here[wanted]
    near = difflib.get_close_matches(wanted, here, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else "`tinyllm list` shows what is"
    raise FetchError(f"no model called {name!r} is in {fetch.weights_root()}; {hint}")


def remove(model: LocalModel) -> int:
    """Delete a model's folder; the bytes that are free again.

    Raises:
        FetchError: the model is part of tinyllm's repository, or can't be deleted.
    """
    if model.is_carried:
        raise FetchError(
            f"{model.name} came with tinyllm and takes {_size(model.folder) / 1e6:.0f} MB; "
            "it isn't fetched, so there is nothing to remove"
        )
    nbytes = _size(model.folder)
    with staging.locked(model.folder):
        try:
            if model.folder.is_symlink():
                model.folder.unlink()
            else:
                shutil.rmtree(model.folder)
        except OSError as error:
            raise FetchError(f"{model.folder} can't be removed: {error}") from error
    return nbytes


def files(model: LocalModel) -> Iterator[tuple[str, int]]:
    """Name and size of each file of a model, the kernels' copies included."""
    for path in sorted(model.folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(model.folder).as_posix(), path.stat().st_size


def _is_model(folder: Path) -> bool:
    return not folder.name.startswith(".") and any(
        (folder / name).is_file() for name in ("card.json", "config.json")
    )


def _local_model(folder: Path) -> LocalModel:
    path = folder / "card.json"
    try:
        card = read_json_object(path) if path.is_file() else {}
    except ConfigError:  # a damaged card must not hide the folder that it spoils
        card = {}
    packed = _size(folder / PACKED)
    return LocalModel(folder.name, folder, card, _size(folder) - packed, packed)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
