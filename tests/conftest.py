"""Fixtures that every room's tests share."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quantkit import console
from quantkit_tools.cli import run_verb
from tests.tiny import tiny_model_folder

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """Folder of a trained 0.6 M-parameter Llama with a ChatML tokenizer; treat it as read-only."""
    return tiny_model_folder()


@pytest.fixture(autouse=True)
def no_fixed_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the terminal width that pytest's own workers export; tests that want one set it."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def human_text_on_stdout() -> Iterator[None]:
    """Take back what a verb with `--json` sent to stderr."""
    yield
    console.use_stdout()


@pytest.fixture
def quantkit(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `quantkit VERB …` in this process and return exit code, stdout and stderr."""

    def run(verb: str, *arguments: object) -> tuple[int, str, str]:
        try:
            code = run_verb(verb, [str(argument) for argument in arguments])
        finally:
            console.use_stdout()
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def read_json(quantkit: Run) -> Callable[..., Any]:
    """Run a verb with `--json`; return the object it prints."""

    def run(verb: str, *arguments: object) -> Any:
        code, out, err = quantkit(verb, *arguments, "--json")
        trained_for_a_moment = verb == "evaluate" and code == 3  # what such a model writes may be garbage
        assert code == 0 or trained_for_a_moment, err
        return json.loads(out)

    return run
