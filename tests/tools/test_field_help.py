"""Is the help of a flag one paragraph, whatever lines its docstring has in the source?"""

from dataclasses import dataclass

import pytest

from quantkit.errors import UsageError
from quantkit_tools.cli import main
from quantkit_tools.small_flags import read_small_flags


@dataclass(frozen=True)
class Flags:
    """Walk."""

    far: int = 3
    """How many steps,
    and from where."""
    plain: tuple[str, ...] = ()


def test_a_docstring_of_two_lines_is_one_paragraph(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_small_flags(Flags, "walk", ["--help"])
    out = capsys.readouterr().out
    assert "How many steps, and from where. (default: 3)" in " ".join(out.split())
    assert "steps,\n" not in out
    assert out.startswith("usage: quantkit walk")
    assert "Walk." in out


def test_flags_are_still_of_the_class_that_was_asked_for() -> None:
    found = read_small_flags(Flags, "walk", ["--far", "4", "--plain", "a", "b"])
    assert isinstance(found, Flags)
    assert (found.far, found.plain) == (4, ("a", "b"))
    with pytest.raises(UsageError, match="--fra"):
        read_small_flags(Flags, "walk", ["--fra", "4"])


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_no_line_of_a_verbs_help_ends_early(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    said = " ".join(line.strip("│ ") for line in capsys.readouterr().out.splitlines())
    assert {
        "train": "pissa, at the largest singular values of a dense base",
        "evaluate": "Without it, two generated sets of one-step arithmetic",
    }[verb] in said
