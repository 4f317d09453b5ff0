"""What is being compiled now, for `/health` to tell; apart, so that asking doesn't load numba."""

compiling: list[str] = []
"""Names as `machine_code.prepare` was given them, "q4-f16" for example; usually none."""
