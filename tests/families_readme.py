"""The table of what runs in tinyllm/families/README.md: `python -m tests.families_readme`."""

from __future__ import annotations

import re
from pathlib import Path

from tests.families_folder import FAMILIES as SMALL
from tests.families_folder import config_keys
from tinyllm.compiled import check_parts
from tinyllm.config import ModelConfig
from tinyllm.errors import ConfigError
from tinyllm.families import FAMILIES
from tinyllm.families.catalogue import SEEING
from tinyllm.files.gguf_families import FAMILIES as GGUF

PATH = Path(__file__).parent.parent / "tinyllm" / "families" / "README.md"
# Families under another name inside of a model that sees.
INSIDE = {"qwen3": ["qwen3_vl_text"], "qwen3_moe": ["qwen3_vl_moe_text"]}
BEGIN, END = "<!-- families -->", "<!-- end -->"


def small(model_type: str) -> ModelConfig:
    """The first small configuration of a family."""
    name = next(name for name, (kind, _) in SMALL.items() if kind == model_type)
    return ModelConfig.from_hf({"model_type": model_type, **config_keys(name)[1]})


def compiles(config: ModelConfig) -> bool:
    """Whether the compiled path has all its parts (of other shapes it may ask multiples of 32)."""
    try:
        check_parts(config)
    except ConfigError:
        return False
    return True


def gguf_names(model_type: str) -> str:
    """What a GGUF file calls the family, "—" where none of its files is read."""
    names = [name.partition("/")[0] for name, own in GGUF.items() if own.model_type == model_type]
    return ", ".join(f"`{name}`" for name in names) or "—"


def seen(model_type: str) -> str:
    """Which models that see images have the family inside; "—" where none."""
    own = {model_type, *INSIDE.get(model_type, ())}
    names = [name.removesuffix("ForConditionalGeneration")
             for name, (kind, _) in SEEING.items() if kind in own]  # fmt: skip
    return ", ".join(names) or "—"


def table() -> str:
    """A row a family."""
    heads = ("family", "model_type", "architecture", "GGUF", "compiled", "seen",
             "differs from Llama in")  # fmt: skip
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for family in FAMILIES:
        config = small(family.model_type)
        differing = ", ".join(part.replace("_", " ") for part in config.beyond_llama()) or "—"
        rows.append(
            f"| {family.name} | `{family.model_type}` | `{family.architecture}` | "
            f"{gguf_names(family.model_type)} | "
            f"{'yes' if compiles(config) else 'no'} | {seen(family.model_type)} | {differing} |"
        )
    return "\n".join(rows)


def with_table(text: str) -> str:
    """The page with the table of today."""
    new = f"{BEGIN}\n{table()}\n{END}"
    return re.sub(f"{BEGIN}.*{END}", lambda _: new, text, flags=re.DOTALL)


if __name__ == "__main__":
    PATH.write_text(with_table(PATH.read_text(encoding="utf-8")), encoding="utf-8")
