"""From pixels to rows that a language model reads.

    image.py       bytes → upright RGB pixels        preprocess.py  pixels → what an encoder takes
    config.py      an encoder's shape, and names     encoder.py     the ViT, readable
    compiled.py    the same, fast                    load.py        one or the other, from a folder
    connector.py   a caption's rows from features    connected.py   encoder and text model
    smolvlm.py     the SmolVLM family                prompt.py      image tokens → their rows

In: files, bytes or arrays. Out: a `Prompt` whose image rows stand in for tokens' embeddings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinyllm.vision.encoder import VisionModel

__all__ = ["VisionModel"]


def __getattr__(name: str) -> object:
    """Import on first use: whoever wants a part of this room needn't load the others."""
    if name in __all__:
        from tinyllm.vision import encoder

        return getattr(encoder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
