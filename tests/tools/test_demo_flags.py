"""Is a demo that cannot be refused before anything is fetched?"""

from pathlib import Path

import pytest

from quantkit_tools.cli import main


@pytest.mark.parametrize("flag", ["--steps", "--rows"])
def test_a_demo_of_nothing_is_refused_at_once(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--folder", str(tmp_path / "demo"), flag, "0"]) == 2
    assert f"{flag} is 0; at least 1 is needed" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
