"""The programs for a terminal: `tinyllm chat | step | pull | bench | inspect` and their like.

In: flags and keys. Out: text on a screen. Nothing imports them.
"""
