"""Live comparisons with torch and transformers, all logits of all prompts.

Marked `reference` and left out by default: `.ci/run` installs the two and runs them with
`pytest -m reference`.
"""
