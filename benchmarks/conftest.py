"""One table of all ratios at the end of a run, as docs/cost.md shows figures."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Every benchmark that compares something: figures below 1 are shares of what it is compared with."""
    session: Any = getattr(config, "_benchmarksession", None)
    found = [(one.name, one.extra_info) for one in getattr(session, "benchmarks", ())]
    lines = [
        f"| {name} | {', '.join(f'{key} {_short(value)}' for key, value in info.items())} |"
        for name, info in found
        if info
    ]
    if lines:
        terminalreporter.write_line("\n".join(["", "| benchmark | figures |", "|---|---|", *lines]))


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
