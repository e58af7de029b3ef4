"""`quantkit registry` lists, shows, verifies and detects, in half a second and with the house's exit codes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantkit import console
from quantkit_registry.store import Registry
from quantkit_tools.cli import main
from tests.registry import samples
from tests.registry.records_of import commit_adapter, commit_model

ADAPTER = "Base-d_SFT_LoRa8_QLORA_w4_headbf16"
MODEL = f"{ADAPTER}_mergedbf16"
RESULT = {"task": "arith", "metric": "exact_match", "scores": {"exact_match": {"value": 0.625}}, "marks": ["FLOOR"]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    commit_adapter(tmp_path)
    commit_model(tmp_path)
    samples.bnb4(tmp_path / "Foreign-bnb-4bit")
    registry = Registry(tmp_path)
    registry.add_result(str(registry.find(MODEL).hash), "arith", RESULT)
    return tmp_path


def run(*arguments: str | Path) -> int:
    return main(["registry", *map(str, arguments)])


def json_of(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_ls_shows_ours_and_others_with_their_scores(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls", "--root", root) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "62.5%, FLOOR" in lines[MODEL]  # below one another where there is a width
    assert "bfloat16" in lines[MODEL]
    assert "adapter for nf4" in lines[ADAPTER]
    assert "nf4 4-bit (bitsandbytes-4bit)" in lines["Foreign-bnb-4bit"]
    assert lines["Foreign-bnb-4bit"].split()[-2] == "foreign"


def test_ls_gives_one_json_object(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls", "--root", root, "--json") == 0
    rows = {row["name"]: row for row in json_of(capsys)["artifacts"]}
    assert rows[MODEL]["scores"] == {"arith": "62.5% FLOOR"}
    assert (rows[MODEL]["weights_bits"], rows[MODEL]["method"], rows[MODEL]["stored"]) == (16, "QLORA", "bfloat16")
    assert rows[ADAPTER]["origin"] == "quantkit"
    assert rows["Foreign-bnb-4bit"]["weights_bits"] == 4


def test_ls_shows_disputed_and_broken_folders_instead_of_failing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "Foreign-bnb-4bit" / "training_metadata.json").write_text('{"quantization": {"method": "NoQuant"}}')
    (samples.bnb8(root / "Lies") / "config.json").write_text("{}")
    (root / ADAPTER / "quantization_metadata.json").write_text("{")
    (samples.dense(root / "Cut") / "model.safetensors").write_bytes(b"x")
    assert run("ls", "--root", root, "--json") == 0
    rows = {row["name"]: row for row in json_of(capsys)["artifacts"]}
    assert (rows["Foreign-bnb-4bit"]["method"], rows["Foreign-bnb-4bit"]["origin"]) == ("disputed", "study")
    assert rows["Foreign-bnb-4bit"]["stored"].startswith("nf4")
    assert (rows["Lies"]["method"], rows["Lies"]["stored"]) == ("disputed", "tensors and config.json disagree")
    assert rows[ADAPTER]["origin"] == "broken"
    assert "cut short" in rows["Cut"]["fault"]
    console.use_stdout()
    assert run("ls", "--root", root) == 0
    assert f"{ADAPTER} is broken: " in capsys.readouterr().out


def test_an_empty_registry_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls", "--root", tmp_path / "none") == 0
    printed = capsys.readouterr()
    assert "(none)" in printed.out
    assert "none: no such folder; --registry names the folder that holds artifacts" in printed.err


def test_show_prints_record_and_results(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", MODEL, "--root", root) == 0
    text = capsys.readouterr().out
    assert "weights_dtype" in text
    assert "LoRa8 on QLORA weights" in text
    assert "62.5% FLOOR" in text
    assert run("show", MODEL, "--root", root, "--json") == 0
    data = json_of(capsys)
    assert data["record"]["name"] == MODEL
    assert data["results"]["arith"] == RESULT


def test_show_writes_a_record_as_people_read_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / MODEL / "quantization_metadata.json"
    data = json.loads(path.read_text())
    data["training"] = {
        "losses": [3.0477962493896484, *[2.0] * 40, 1.25],
        "settings": {f"setting_{i}": None for i in range(13)},
    }
    data["data"] = {"supervised": {"minimum": 7, "median": None}, "shared": True, "dropped": {}}
    path.write_text(json.dumps(data))
    assert run("show", MODEL, "--root", root) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "training losses 3.048, 2, 2, … 1.25 (42 entries)" in lines
    assert "training settings setting_12 –" in lines
    assert "data supervised minimum 7, median –" in lines
    assert "data shared yes" in lines
    assert "data dropped –" in lines


def test_a_degenerate_artifact_is_marked_wherever_it_is_listed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = Registry(root)
    broken = RESULT | {"marks": ["FLOOR", "LOOPS", "NO STOP"], "degenerate": ["LOOPS", "NO STOP"]}
    registry.add_result(str(registry.find(MODEL).hash), "sums", broken)
    assert run("ls", "--root", root) == 0
    assert f"{MODEL} is degenerate: LOOPS, NO STOP on sums" in capsys.readouterr().out
    assert run("show", MODEL, "--root", root) == 0
    assert "LOOPS, NO STOP on sums" in capsys.readouterr().out
    for command in (["show", MODEL], ["ls"]):
        assert run(*command, "--root", root, "--json") == 0
        said = json_of(capsys)
        console.use_stdout()
        rows = {row["name"]: row for row in said.get("artifacts", [said])}
        assert rows[MODEL]["degenerate"] == {"sums": ["LOOPS", "NO STOP"]}


def test_verify_passes_and_fails_with_exit_code_3(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", "--root", root) == 0
    assert "2 artifacts checked, none failed" in capsys.readouterr().out
    (root / MODEL / "config.json").write_text('{"a": 2}')
    assert run("verify", "--root", root) == 3
    assert f"1 of 2 artifacts failed: {MODEL}" in capsys.readouterr().err
    assert run("verify", ADAPTER, "--root", root) == 0
    capsys.readouterr()
    assert run("verify", "--root", root, "--json") == 3
    assert json_of(capsys)["failed"] == 1


def test_lineage_prints_the_tree(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("lineage", ADAPTER, "--root", root) == 0
    assert "└ org/Base: base" in capsys.readouterr().out
    assert run("lineage", ADAPTER, "--root", root, "--json") == 0
    assert json_of(capsys)["origins"][0]["name"] == "org/Base"


def test_detect_says_on_whose_word(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("detect", root / "Foreign-bnb-4bit", "--root", root) == 0
    text = capsys.readouterr().out
    assert "config.json quantization_config" in text
    assert "a hint only" in text
    assert run("detect", ADAPTER, "--root", root, "--json") == 0
    detection = json_of(capsys)["detections"][0]
    assert (detection["kind"], detection["method"]) == ("adapter", "QLORA")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["shwo", "x"], 2, "Did you mean 'show'?"),
        (["show", "x"], 2, "is called 'x'. quantkit registry ls --root"),
        (["detect", "./nothing"], 2, "no such file or folder"),
        (["detect", "Foreign-bnb-4bit", "--method", "QLRA"], 2, "no method is called 'QLRA'"),
        (["detect", "Foreign-bnb-4bit", "--method", "NoQuant"], 3, "NoQuant was asked for, but the tensors are nf4"),
    ],
)
def test_mistakes_are_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    known = arguments[0] != "shwo"
    assert run(*arguments, *(["--root", root] if known else [])) == code
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run("--help")
    text = capsys.readouterr().out
    assert all(word in text for word in ("ls", "show", "verify", "lineage", "detect"))


def test_ls_imports_no_torch(root: Path) -> None:
    code = "import sys; from quantkit_tools.cli import main; sys.exit(main(sys.argv[1:]) or int('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, "registry", "ls", "--root", str(root)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
