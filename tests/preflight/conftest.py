"""Rows and tokenizer of the data room."""

from tests.data.conftest import _tokenizer, tokenizer, write  # noqa: F401
