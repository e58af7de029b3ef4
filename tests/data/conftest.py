"""A tokenizer and a way to write row files, shared by the tests of the data room."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer

Write = Callable[..., str]


@pytest.fixture(scope="session")
def _tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture
def tokenizer(_tokenizer: Any) -> Any:
    """The tiny byte-level tokenizer (pad = eos) with its ChatML template; a test may change the template."""
    _tokenizer.chat_template = CHAT_TEMPLATE
    return _tokenizer


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows as `name` (jsonl, json, csv by suffix; text and bytes as they are) and return the path."""

    def writer(rows: Any, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(rows, bytes):
            path.write_bytes(rows)
        elif isinstance(rows, str):
            path.write_text(rows, encoding="utf-8")
        elif name.endswith(".parquet"):
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        else:
            text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
            path.write_text(text, encoding="utf-8")
        return str(path)

    return writer
