"""Where the processor time of a test session goes, which a busy machine does not blur as it does seconds.

``--cpu N`` prints the N tests that took the most, with what their processes took that have ended, and the
sum over all processes of the session (imports and collection too).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest


def used() -> float:
    """CPU seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class CpuSeconds:
    """Measures in the processes that run tests, and adds up in the one that reports."""

    def __init__(self, show: int) -> None:
        self.show, self.since = show, 0.0
        self.tests: Counter[str] = Counter()
        self.workers = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Iterator[None]:
        self.since = used()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        report: Any = yield
        now = used()
        report.cpu_seconds, self.since = now - self.since, now
        return report

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.tests[report.nodeid] += getattr(report, "cpu_seconds", 0.0)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if (output := getattr(session.config, "workeroutput", None)) is not None:
            output["cpu_seconds"] = used()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.workers += getattr(node, "workeroutput", {}).get("cpu_seconds", 0.0)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        total = self.workers + time.process_time() if self.workers else used()
        terminalreporter.section(f"{total:.0f} CPU seconds, most of them by")
        for test, seconds in self.tests.most_common(self.show):
            terminalreporter.write_line(f"{seconds:7.2f} {test}")
