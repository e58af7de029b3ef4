"""Fixtures of the training tests."""

from pathlib import Path
from typing import Any

import pytest

from quantkit.data import PreparedData
from tests.training.helpers import reversed_arithmetic


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Any:
    """The tiny model's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="session")
def data(tokenizer: Any) -> PreparedData:
    """Rows of `reversed_arithmetic`."""
    return reversed_arithmetic(tokenizer)
