"""Says at the end how near the logits were."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    gaps: dict[str, list[float]] = {"up to 500 tokens": [], "up to 1,500": []}
    for report in terminalreporter.stats.get("passed", []):
        measured = dict(report.user_properties)
        if "largest_gap" in measured:
            length = "up to 500 tokens" if measured["n_tokens"] <= 500 else "up to 1,500"
            gaps[length].append(measured["largest_gap"])
    for length, found in gaps.items():
        if found:
            terminalreporter.write_line(
                f"largest logit gap to the reference, {length}: {max(found):.2e} "
                f"({len(found)} prompts)"
            )
