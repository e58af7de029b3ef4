"""R4: what others wrote is refused with exit code 2 and one line that names file and field, within two seconds of computing."""

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from quantkit_tools import cli
from tests.reliability import hostile, hostile_rows
from tests.reliability.promises import FULL, amount

SECONDS = 2.0
Run = Callable[[hostile.Case, Path], str]


def cases() -> list[hostile.Case]:
    """Return every case that needs no model; in the short form every third."""
    light = chain(hostile.json_files(), hostile.headers(), hostile.shards(), hostile.records(), hostile.run_files())
    return [case for number, case in enumerate(light) if FULL or number % 3 == 0]


@pytest.fixture
def fault_of(capsys: pytest.CaptureFixture[str]) -> Run:
    """Say in what a refusal falls short; empty where it is one."""

    def run(case: hostile.Case, folder: Path) -> str:
        folder.mkdir(parents=True)
        arguments = case.build(folder)
        capsys.readouterr()
        start = sum(os.times()[:4])
        try:
            code: Any = cli.main(arguments)
        except BaseException as error:
            return f"{type(error).__name__}: {str(error)[:300]}"
        seconds = sum(os.times()[:4]) - start
        lines = capsys.readouterr().err.splitlines()
        if code != 2:
            return f"exit code {code}: {lines}"
        if len(lines) != 1 or not lines[0].startswith("error: ") or not lines[0].isprintable():
            return f"not one line: {lines}"
        if lacking := [word for word in case.says if word not in lines[0]]:
            return f"does not name {lacking}: {lines[0]}"
        return f"took {seconds:.1f} s" if seconds > SECONDS else ""

    return run


def test_hostile_files_are_refused_in_one_line(fault_of: Run, tmp_path: Path, figure: Any) -> None:
    tried = cases()
    faults = {case.what: fault for number, case in enumerate(tried) if (fault := fault_of(case, tmp_path / str(number)))}
    assert not faults, "\n".join(f"{what}: {fault}" for what, fault in faults.items())
    assert len(tried) >= amount(80, 300)
    figure("R4", len(tried) - len(faults), len(tried))


def test_hostile_rows_and_tokenizers_are_refused_before_a_model_is_loaded(
    fault_of: Run, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, figure: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    every = [*hostile_rows.rows(tiny_model), *hostile_rows.tokenizers(tiny_model)]
    fault_of(every[0], tmp_path / "libraries are imported")
    tried = [case for number, case in enumerate(every) if FULL or number % 3 == 0]
    faults = {case.what: fault for number, case in enumerate(tried, 1) if (fault := fault_of(case, tmp_path / str(number)))}
    assert not faults, "\n".join(f"{what}: {fault}" for what, fault in faults.items())
    assert not list(tmp_path.rglob("canary"))
    figure("R4", len(tried) - len(faults), len(tried))


def test_a_command_of_its_own_says_the_same(tmp_path: Path) -> None:
    """Not only the function: exit code and one line on stderr, nothing on stdout."""
    every = {case.what: case for case in chain(hostile.json_files(), hostile.run_files())}
    for number, what in enumerate(("config.json is a pickle", "the settings python.yaml")):
        folder = tmp_path / str(number)
        folder.mkdir()
        command = [sys.executable, "-m", "quantkit_tools.cli", *every[what].build(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done
        assert every[what].says[0] in done.stderr
        assert not (folder / "canary").exists()
