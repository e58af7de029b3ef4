"""Is a source that was written wrongly told apart from one that is not there?"""

from pathlib import Path

import pytest

from quantkit.data.sources import parse_dataset
from quantkit.errors import UsageError


def test_a_misspelt_built_in_name_before_a_file_that_is_there_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(UsageError, match=r"no built-in data set is called 'openmth'. Did you mean 'openmath'\?"):
        parse_dataset(f"openmth:{tmp_path / 'rows.jsonl'}")
