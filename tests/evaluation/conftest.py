"""What lm-eval is run on: the tiny model, and tasks of a user's own."""

from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.harness_tasks import load_tiny, write_definitions


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of task definitions, as a user would keep one."""
    return write_definitions(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    return load_tiny(tiny_model)
