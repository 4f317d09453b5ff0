"""Families of models: for each, a short description of what it changes.

In: a checkpoint's `config.json` and the names of its tensors. Out: our names for both, and the
parts (`parts.py`) that a model is made of. No description has a forward of its own: `model.py` runs
the parts. Read `llama.py` first, then `qwen3.py` and `gemma3.py`.
"""

from tinyllm.families.catalogue import BY_TYPE, FAMILIES, describe

__all__ = ["BY_TYPE", "FAMILIES", "describe"]
