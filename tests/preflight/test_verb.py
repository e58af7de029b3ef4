"""`quantkit preflight`: settings as in `train`, exit codes, JSON, the page, and what a terminal shows."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from quantkit.config import RunConfig
from quantkit_tools.preflight import look_at
from tests.preflight.faults import FAULTS, SOUND, weightless
from tests.test_console import on_terminal

ONE_ANSWER = FAULTS["one answer to everything"]


@pytest.fixture
def flags(tiny_model: Path, tmp_path: Path) -> list[object]:
    """Flags of a run on sound rows and a model without weights."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in SOUND))
    return ["--model-name-or-path", weightless(tiny_model, tmp_path / "model"), "--dataset-name", rows]


@pytest.fixture
def faulty(tiny_model: Path, tmp_path: Path) -> list[object]:
    """Flags of a run whose rows have one answer."""
    model = ONE_ANSWER.model(tiny_model, tmp_path / "model")
    return ["--model-name-or-path", model, "--dataset-name", ONE_ANSWER.dataset(tmp_path)]


def test_rows_figures_findings_and_a_verdict_are_printed(flags: list[object], quantkit: Any) -> None:
    code, out, _ = quantkit("preflight", *flags, "--rows", 1)
    assert code == 0
    assert "what is learnt stands between ⟦ and ⟧" in out
    assert f"<|im_start|>assistant\n⟦{SOUND[0]['answer']}<|im_end|>⟧" in out
    assert out.count("⟦") == 2
    assert "learnt per row, median" in out
    assert out.rstrip().endswith("nothing stands against training on this")


def test_an_error_ends_with_3_and_the_whole_outcome_is_one_json_object(faulty: list[object], quantkit: Any) -> None:
    code, out, err = quantkit("preflight", *faulty, "--json", "--max-length", 200)
    found = json.loads(out)
    assert code == 3
    assert found["counts"] == {"error": 1, "warning": 0, "repaired": 2, "note": 0}
    assert found["findings"][0]["check"] == "one answer"
    assert found["settings"]["max_length"] == 200
    assert found["data"]["supervised"]["minimum"] > 0
    assert [len(found["samples"]), found["samples"][0]["segments"][1]["learnt"]] == [3, True]
    assert "1 error, 0 warnings: training on this would not teach what was meant" in err


def test_settings_come_from_a_runs_file_as_in_train(flags: list[object], read_json: Any, tmp_path: Path) -> None:
    file = tmp_path / "runs.json"
    run = {"model_name_or_path": str(flags[1]), "dataset_name": str(flags[3]), "max_length": 99, "packing": True}
    file.write_text(json.dumps({"small": run, "other": run}))
    found = read_json("preflight", "--config", file, "--run", "small", "--trunc-train", 4)
    assert (found["settings"]["max_length"], found["settings"]["trunc_train"]) == (99, 4)
    assert [item["check"] for item in found["findings"]][-1] == "packing"


def test_the_page_is_written_once(flags: list[object], quantkit: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, out, _ = quantkit("preflight", *flags, "--html", page)
    assert (code, f"written: {page} (" in out) == (0, True)
    assert page.read_text().startswith("<!doctype html>")
    assert "<dt>packing</dt><dd>no</dd>" in page.read_text()
    assert "exists" in quantkit("preflight", *flags, "--html", page)[2]
    assert quantkit("preflight", *flags, "--html", page, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--rows", "-1"], "command line: rows is -1; it must be 0 or more"),
        (["--rows", "many"], "command line: rows is 'many'"),
        (["--dry-run"], "no flag is called --dry-run"),
        (["--html", "."], ". is a folder; a file name is wanted"),
        (["--max-lenght", "9"], "no flag is called --max-lenght. Did you mean --max-length?"),
    ],
)
def test_what_cannot_be_asked_ends_with_2(flags: list[object], quantkit: Any, more: list[str], says: str) -> None:
    code, _, err = quantkit("preflight", *flags, *more)
    assert (code, says in err) == (2, True), err


def test_a_run_without_data_and_a_model_that_is_not_there_end_with_2(flags: list[object], quantkit: Any) -> None:
    code, _, err = quantkit("preflight", *flags[:2])
    assert (code, "no data set was named" in err) == (2, True)
    code, _, err = quantkit("preflight", "--model-name-or-path", "./nowhere", *flags[2:])
    assert (code, "nowhere: no such folder" in err) == (2, True)


def test_train_stops_on_an_error_and_goes_on_with_a_warning_when_told_to(
    faulty: list[object], quantkit: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reached: list[object] = []

    def load(*_: object) -> None:
        reached.append(True)
        raise KeyboardInterrupt

    monkeypatch.setattr("quantkit_tools.stages.load_trainable", load)
    code, _, err = quantkit("train", *faulty, "--output-dir", tmp_path / "out")
    assert (code, reached) == (3, [])
    assert err.startswith("error: one answer: 12 of 12 answers (100%) are 'i do not know.'. a model learns to say this")
    assert err.rstrip().endswith("preflight=warn trains all the same")
    code, _, err = quantkit("train", *faulty, "--output-dir", tmp_path / "out", "--preflight", "warn")
    assert (code, reached) == (130, [True])
    assert "warning: one answer: 12 of 12 answers" in err


@pytest.mark.parametrize(("columns", "environment"), [(60, {}), (160, {}), (60, {"NO_COLOR": "1"})])
def test_a_terminal_shows_the_mask_in_colour_within_its_width(
    flags: list[object], tmp_path: Path, columns: int, environment: dict[str, str]
) -> None:
    config = RunConfig(model_name_or_path=str(flags[1]), dataset_name=str(flags[3]))
    kept = tmp_path / "found.pickle"
    kept.write_bytes(pickle.dumps(look_at(config, rows=1)))
    script = "import pickle\nfrom pathlib import Path\nfrom quantkit_tools.preflight_showing import show\n"
    seen = on_terminal(f"{script}show(pickle.loads(Path({str(kept)!r}).read_bytes()))", columns, **environment)
    coloured = not environment
    assert ("\x1b[1;32m" in seen) == coloured
    assert ("⟦" in seen) != coloured
    plain = re.sub(r"\x1b\[[0-9;]*m", "", seen).replace("\r", "")
    assert max(map(len, plain.splitlines())) <= columns
    assert "nothing stands against training on this" in plain
