"""Is a wrong flag of a small verb one line that says what to do, on narrow terminals too?"""

import pytest

from quantkit_tools.cli import main

WRONG = [
    ("doctor --dep", "Unrecognized options: --dep. Did you mean --deep?; quantkit doctor --help lists what there is"),
    ("doctor now", "Unrecognized options: now; quantkit doctor --help"),
    ("report --html", "Missing value for argument '--html'. Expected 1 values; quantkit report --help"),
    ("report --htlm x", "Did you mean --html?"),
    ("sweep f.yaml --max-workers a", "Error parsing --max-workers: invalid literal for int() with base 10: 'a'"),
    ("sweep", "Missing from quantkit sweep: FILE JSON, TOML or YAML"),
    ("audit --jsno", "Did you mean --json?"),
    ("methods --jsno", "Did you mean --json?"),
    ("export --too gguf", "--to"),
    ("evaluate x --dta y", "Did you mean --data?"),
    ("demo --step 3", "Did you mean --steps?"),
    ("registry", "the following arguments are required: COMMAND; quantkit registry --help lists what there is"),
    ("registry show", "the following arguments are required: artifact; quantkit registry show --help"),
    ("registry ls --rot x", "unrecognized arguments: --rot x"),
    ("merge --policy base adapter", "no adapter is named, and it stands first; quantkit merge ADAPTER [--policy"),
    ("report --csv .", ". is a folder; a file name is wanted"),
    ("report --csv pyproject.toml", "pyproject.toml exists; choose another file name or pass --overwrite to replace it"),
]


@pytest.mark.parametrize("columns", ["60", "160"])
@pytest.mark.parametrize(("words", "said"), WRONG)
def test_a_wrong_flag_is_one_line(
    words: str, said: str, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(words.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err


def test_help_is_still_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--help"])
    assert stop.value.code == 0
    assert "--deep" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["train", "plan", "quantize", "merge", "export", "evaluate", "sweep", "registry adopt"])
def test_the_help_of_what_writes_names_the_dry_run_and_the_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*verb.split(), "--help"])
    shown = capsys.readouterr().out
    assert "--dry-run" in shown
    assert "--json" in shown


def test_help_of_verbs_with_a_runs_settings_has_no_gap_within_a_paragraph(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    shown = capsys.readouterr().out.split("options")[0]
    assert "Nothing is loaded." in shown
    assert not [line for line in shown.splitlines() if "  " in line.strip()]
