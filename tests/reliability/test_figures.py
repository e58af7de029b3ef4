"""Does the table count what tests say, and does a promise that nobody tried fail the full form?"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
from tests.reliability.conftest import *

def test_kills(figure):
    figure("R1", 12, 12)

def test_more_kills(figure):
    figure("R1", 3, 3)

def test_garbage(figure):
    figure("R11", 47, 48)
"""


def _run(tests: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text("from tests.reliability.conftest import *\n")
    (folder / "test_it.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(folder), f"--rootdir={folder}"]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "QUANTKIT_RELIABILITY": "", **environment},
    )


def test_figures_of_one_promise_are_added_up_and_one_that_does_not_hold_fails(tmp_path: Path) -> None:
    """Twelve and three of fifteen hold; 47 of 48 is a failure with its name."""
    done = _run(TESTS, tmp_path)
    assert done.returncode == 1
    assert "15/15  kill points survived" in done.stdout
    assert "47/48  degenerate predictors flagged" in done.stdout
    assert "R11: 47 of 48 degenerate predictors flagged" in done.stdout
    assert "not tried  the demo without a network" in done.stdout


def test_the_full_form_fails_where_a_promise_was_not_tried(tmp_path: Path) -> None:
    """All tests pass, and still the run does not."""
    tests = TESTS.replace("47, 48", "48, 48")
    assert _run(tests, tmp_path).returncode == 0
    done = _run(tests, tmp_path, QUANTKIT_RELIABILITY="full")
    assert done.returncode == 1
    assert "no test spoke of R2, R3" in done.stdout
