"""Checkpoint files that are not safetensors: read, checked and dequantised, never fetched.

In: a path. Out: a header's fields, and tensors as arrays or as the file's own blocks.
"""
