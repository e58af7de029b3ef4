"""`python -m quantkit` is the command, and says so where there is none."""

import subprocess
import sys
from typing import Any

import pytest

from quantkit import __main__ as module


def test_the_package_runs_as_the_command_does() -> None:
    done = subprocess.run([sys.executable, "-m", "quantkit", "nope"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no verb is called 'nope'" in done.stderr


def test_without_an_installed_command_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(**_: Any) -> tuple[()]:
        return ()

    monkeypatch.setattr(module, "entry_points", none)
    assert module.main() == 2
    assert capsys.readouterr().err == "error: quantkit is not installed here, only importable; install it: pip install .\n"
