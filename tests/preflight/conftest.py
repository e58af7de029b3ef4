"""Rows and tokenizer of the data room, and commands run in this process."""

from tests.data.conftest import _tokenizer, tokenizer, write  # noqa: F401
from tests.tools.conftest import quantkit, read_json  # noqa: F401
