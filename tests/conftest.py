"""Fixtures that every room's tests share."""

from pathlib import Path

import pytest

from tests.tiny import tiny_model_folder


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """Folder of a trained 0.6 M-parameter Llama with a ChatML tokenizer; treat it as read-only."""
    return tiny_model_folder()


@pytest.fixture(autouse=True)
def no_fixed_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the terminal width that pytest's own workers export; tests that want one set it."""
    monkeypatch.delenv("COLUMNS", raising=False)
