"""`quantkit report` on a registry: what was filed is read as a stranger's, and files are written once."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantkit.evaluation.results import ArtifactResult, TaskResult
from quantkit_registry.store import Registry
from quantkit_tools.cli import run_verb
from quantkit_tools.report_reading import read_subjects
from tests.registry.records_of import commit_adapter, commit_model
from tests.reporting.conftest import perplexity_result, task_result
from tests.test_cli import HEAVY

ROOT = Path(__file__).parent.parent.parent
BASE = "ef" * 32


def file_result(root: Path, artifact: str, result: TaskResult, **about: Any) -> Path:
    """File a result as `quantkit evaluate` does."""
    said: dict[str, Any] = {
        "path": "", "name": "Base", "artifact": artifact, "kind": "model", "quantization": {"method": "NoQuant"},
        "evidence": ["tensors: dense"], "memory": {"stages": []}, "results": [],
    }  # fmt: skip
    whole = ArtifactResult(**(said | about)).to_dict()
    kept = {key: value for key, value in whole.items() if key not in ("results", "path")}
    return Registry(root).add_result(artifact, result.task, result.to_dict() | {"artifact": kept})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A registry with a merged model, a kept adapter without results, and results of a base that is elsewhere."""
    root = tmp_path / "artifacts"
    model = commit_model(root)
    commit_adapter(root)
    entry = Registry(root).find(model.name)
    assert entry.hash is not None
    file_result(root, entry.hash, task_result(50), name=model.name, size_bytes=1234, bits_per_weight=16.0)
    file_result(root, BASE, task_result(8))
    file_result(root, BASE, perplexity_result(3.0))
    return root


def report(root: Path, *arguments: object, code: int = 0) -> None:
    assert run_verb("report", ["--registry", str(root), *map(str, arguments)]) == code


def read(root: Path, capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    report(root, *arguments, "--json")
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_everything_with_results_is_reported_and_what_has_none_is_named(root: Path, capsys) -> None:
    found = read(root, capsys)
    model = "Base-d_SFT_LoRa8_QLORA_w4_headbf16_mergedbf16"
    assert [(row["task"], row["name"], row["marks"]) for row in found["rows"]] == [
        ("codes", model, []),
        ("codes", "Base", ["FLOOR"]),
        ("text", "Base", []),
    ]
    assert [found["rows"][0][key] for key in ("method", "peft", "size_bytes", "bits_per_weight")] == [
        "QLORA",
        "LoRa8",
        1234,
        16.0,
    ]
    assert found["missing"] == [
        "No results at all (quantkit evaluate makes them): Base-d_SFT_LoRa8_QLORA_w4_headbf16.",
        f"No result for text: {model}.",
        "Known from results only, so without lineage, recipe and gate: Base [efefefefefef]. No artifact with this content is in"
        " the registry: a base, a folder elsewhere, or one that was made anew since.",
    ]


def test_a_registry_that_is_not_there_is_named(tmp_path: Path, capsys) -> None:
    assert run_verb("report", ["--registry", str(tmp_path / "none")]) == 0
    assert "none: no such folder; --registry names the folder that holds artifacts and results" in capsys.readouterr().err


def test_artifacts_are_chosen_by_name_path_or_hash(root: Path, capsys) -> None:
    assert {row["name"] for row in read(root, capsys, "efef")["rows"]} == {"Base"}
    folder = root / "Base-d_SFT_LoRa8_QLORA_w4_headbf16_mergedbf16"
    assert [row["name"] for row in read(root, capsys, folder)["rows"]] == [folder.name]
    report(root, "Bsae", code=2)
    assert "nothing here is called 'Bsae', and no result names it. Did you mean 'Base'?" in capsys.readouterr().err


def test_an_artifact_outside_the_registry_is_found_by_its_path(root: Path, tmp_path: Path, capsys) -> None:
    folder = commit_model(tmp_path / "elsewhere", dataset="other")
    entry = Registry(tmp_path / "elsewhere").find(folder.name)
    assert entry.hash is not None
    file_result(root, entry.hash, task_result(30), name=folder.name)
    (row,) = read(root, capsys, folder)["rows"]
    assert (row["name"], row["base"]) == (folder.name, "org/Base")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "the JSON is an array; an object was expected"),
        ('{"schema_version": 1}', "schema_version is 1; this quantkit reads"),
        ('{"schema_version": NaN}', "holds the number nan"),
    ],
)
def test_a_damaged_result_costs_itself_only_and_is_named(root: Path, capsys, text: str, said: str) -> None:
    (root / "results" / BASE / "codes.json").write_text(text)
    found = read(root, capsys)
    assert len(found["rows"]) == 2
    (fault,) = found["faults"]
    assert fault.startswith("A result was left out: results/efefefefefef…/codes.json: ")
    assert said in fault


def test_a_result_whose_statement_on_its_artifact_is_none_is_left_out(root: Path, capsys) -> None:
    path = root / "results" / BASE / "codes.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"artifact": {"name": 7}}))
    assert "codes.json: evaluation" in read(root, capsys)["faults"][0]


def test_stages_of_separate_evaluations_are_put_together(root: Path) -> None:
    for task, stages in (("one", ["load", "one: generate"]), ("two", ["load", "two: generate"])):
        memory = {"stages": [{"stage": stage, "peak_rss_bytes": 5} for stage in stages]}
        file_result(root, "aa" * 32, task_result(50, task=task), name="Twice", memory=memory)
    subjects, _ = read_subjects(Registry(root), ["Twice"])
    assert [stage["stage"] for stage in subjects[0].memory["stages"]] == ["load", "one: generate", "two: generate"]


def test_a_broken_artifact_is_named_and_left_out(root: Path, capsys) -> None:
    (root / "Base-d_SFT_LoRa8_QLORA_w4_headbf16" / "quantization_metadata.json").write_text("{")
    assert "Base-d_SFT_LoRa8_QLORA_w4_headbf16 is broken and left out: " in read(root, capsys)["faults"][0]


def test_all_files_are_written_and_none_is_replaced_unasked(root: Path, tmp_path: Path, capsys) -> None:
    page, table = tmp_path / "out" / "report.html", tmp_path / "out" / "report.csv"
    report(root, "--html", page, "--csv", table, "--baseline", "Base")
    out = capsys.readouterr().out
    assert "Against Base" in out
    assert f"written: {page}" in out
    assert len(list(csv.DictReader(table.open()))) == 3
    assert page.read_text().startswith("<!doctype html>")
    table.write_text("mine")
    report(root, "--html", tmp_path / "new.html", "--csv", table, code=2)
    assert f"{table} exists" in capsys.readouterr().err
    assert not (tmp_path / "new.html").exists()
    report(root, "--csv", table, "--overwrite")
    assert table.read_text() != "mine"


def test_a_folder_is_no_file_and_an_unwritable_place_is_named(root: Path, tmp_path: Path, capsys) -> None:
    report(root, "--csv", tmp_path, code=2)
    assert f"{tmp_path} is a folder; a file name is wanted" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    report(root, "--csv", tmp_path / "file" / "x.csv", code=2)
    assert f"{tmp_path / 'file' / 'x.csv'}: cannot be written: " in capsys.readouterr().err


def test_the_page_is_shown_only_on_request(root: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: bool(shown.append(url)))
    report(root, "--open", code=2)
    assert "--open shows the page that --html FILE names; give both" in capsys.readouterr().err
    report(root, "--html", tmp_path / "r.html")
    assert shown == []
    report(root, "--html", tmp_path / "r.html", "--overwrite", "--open")
    assert shown == [(tmp_path / "r.html").as_uri()]
    assert "no browser was found to show" in capsys.readouterr().err


def test_an_empty_registry_makes_an_empty_report(tmp_path: Path, capsys) -> None:
    assert read(tmp_path, capsys, "--html", tmp_path / "r.html")["rows"] == []


def test_the_script_reports_without_importing_anything_heavy(root: Path, tmp_path: Path) -> None:
    script = ROOT / "tools" / "report.py"
    code = (
        f"import sys, runpy; sys.argv = ['report.py', '--registry', {str(root)!r}, '--html', {str(tmp_path / 'r.html')!r}]\n"
        f"try: runpy.run_path({str(script)!r}, run_name='__main__')\n"
        f"except SystemExit as stop: sys.exit(stop.code or ' '.join(set({HEAVY!r}) & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r.html").is_file()
