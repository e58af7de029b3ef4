"""What was promised must never go wrong, with figures: one test target for each of R1 to R14.

    make reliability        # every number in full, and a line for each; fails where one is missing or below its number

The default tests run a short form of the same. A test says what held by `figure(...)`; it fails by itself when less held.
"""

from collections.abc import Callable
from typing import Any

import pytest

from tests.reliability.promises import FULL, PROMISES

Figure = Callable[[str, int, int], None]


@pytest.fixture
def figure(record_property: Any) -> Figure:
    """Say how many of how many held, for the table at the end; fails when not all did."""

    def said(promise: str, held: int, of: int) -> None:
        assert promise in PROMISES
        record_property("figure", (promise, held, of))
        assert held == of, f"{promise}: {held} of {of} {PROMISES[promise]}"

    return said


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print one line for each promise that tests spoke of."""
    sums = _sums(terminalreporter)
    if sums:
        terminalreporter.section("promises" if FULL else "promises, short form")
        for promise, text in PROMISES.items():
            held, of = sums.get(promise, (0, 0))
            terminalreporter.write_line(f"{promise:>4}  {f'{held:,}/{of:,}' if of else 'not tried':>17}  {text}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In the full form, a promise that no test spoke of is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if FULL and reporter is not None and not hasattr(session.config, "workerinput"):
        missing = [promise for promise in PROMISES if promise not in _sums(reporter)]
        if missing and session.exitstatus == 0:
            reporter.write_line(f"no test spoke of {', '.join(missing)}")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _sums(reporter: Any) -> dict[str, tuple[int, int]]:
    sums: dict[str, tuple[int, int]] = {}
    for outcome in ("passed", "failed"):
        for report in reporter.stats.get(outcome, []):
            for name, value in getattr(report, "user_properties", ()):
                if name == "figure" and getattr(report, "when", "call") == "call":
                    promise, held, of = value
                    before = sums.get(promise, (0, 0))
                    sums[promise] = before[0] + held, before[1] + of
    return sums
