"""`tinyllm list | show | rm`: which models are here, what one is, and making room again."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tinyllm import fetch
from tinyllm.config import read_json_object
from tinyllm.fetch import catalog, local
from tinyllm.fetch.local import LocalModel

# What `show` says of config.json, in the checkpoint's own words.
SHAPE = ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads",
         "num_key_value_heads", "vocab_size", "max_position_embeddings")  # fmt: skip


def print_list(console: Console) -> None:
    """Every model that is here, and those of the catalog that could be."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title, justify in (("model", "left"), ("on disk", "right"), ("licence", "left"),
                           ("also called", "left")):  # fmt: skip
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    here = local.models()
    for model in here:
        table.add_row(model.name, _megabytes(model.weight_bytes + model.packed_bytes),
                      _licence(model.card), ", ".join(model.card.get("aliases", [])))  # fmt: skip
    console.print(table if here else "[dim]no model is here yet[/]")
    console.print(f"[dim]in {escape(str(fetch.weights_root()))}[/]")
    names = {model.name for model in here}
    missing = [p.name for p in (*catalog.CATALOG, *catalog.ASSEMBLED) if p.name not in names]
    if missing:
        console.print(f"[dim]to be had with `tinyllm pull NAME`: {', '.join(missing)}[/]")


def print_model(model: LocalModel, console: Console) -> None:
    """One model: where it comes from, its shape, and its files."""
    console.print(f"[bold]{escape(model.name)}[/]  {escape(str(model.folder))}")
    facts: list[tuple[str, Any]] = [
        (key, model.card[key])
        for key in ("origin", "source", "license", "kind", "reasoning", "world")
        if model.card.get(key)
    ]
    config = model.folder / "config.json"
    if config.is_file():
        shape = read_json_object(config)
        facts += [(key, shape[key]) for key in SHAPE if key in shape]
    facts += [("made of", ", ".join(model.card["parts"].values()))] if model.is_carried else []
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    for key, value in facts:
        table.add_row(key.replace("_", " "), escape(str(value)))
    for name, nbytes in local.files(model):
        table.add_row(_megabytes(nbytes), escape(name))
    console.print(table)


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB"


def _licence(card: dict[str, Any]) -> str:
    return str(card.get("license") or "").partition(";")[0]
