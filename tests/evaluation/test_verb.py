"""`quantkit evaluate` from folder to filed result: models, adapters on their recipe, several at once, and refusals."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantkit.evaluation.results import ArtifactResult, TaskResult
from quantkit.files import artifact_hash, write_manifest
from quantkit_registry.fingerprints import fingerprint_base
from quantkit_registry.records import ArtifactRecord, BaseReference, write_record
from quantkit_registry.store import Registry
from quantkit_tools.cli import run_verb
from tests.adapters import foreign_lora

QUICK = ["--limit", "4", "--max-new-tokens", "24"]


@pytest.fixture
def data(tmp_path: Path) -> str:
    rows = [
        {"question": f"There are {a} eggs in a box and 9 eggs in a bag. How many?", "answer": float(a + 9)} for a in range(2, 8)
    ]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A foreign LoRA adapter on the tiny model, trained on nothing but no longer zero."""
    return foreign_lora(tiny_model, tmp_path_factory.mktemp("adapters") / "tiny-lora", std=0.01)


def evaluate(*arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run_verb("evaluate", [*arguments, "--json"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_a_bare_folder_is_detected_scored_and_filed_under_its_content(
    tiny_model: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = evaluate(str(tiny_model), "--data", data, "--registry", str(tmp_path / "r"), *QUICK, capsys=capsys)
    (artifact,) = [ArtifactResult.from_dict(item) for item in printed["artifacts"]]
    assert printed["failed"] == []
    assert artifact.quantization["weights_dtype"] == "bfloat16"
    assert artifact.artifact == fingerprint_base(tiny_model).removeprefix("sha256:")
    filed = Registry(tmp_path / "r").results(artifact.artifact)
    assert TaskResult.from_dict(filed["sums"]) == artifact.results[0]
    assert filed["sums"]["artifact"]["quantization"] == artifact.quantization
    assert [stage["stage"] for stage in artifact.memory["stages"]] == [
        "load",
        "sums: generate",
        "sums: one at a time",
        "sums: perplexity",
    ]
    assert artifact.bits_per_weight == 16.0
    assert artifact.size_bytes == sum(path.stat().st_size for path in tiny_model.iterdir())
    cost = artifact.results[0].cost
    assert (cost.latency_n, set(cost.latency_s)) == (2, {"p50"})
    assert cost.decode_tokens_per_s is not None
    assert [path.name for path in (tmp_path / "r" / "results" / artifact.artifact).iterdir()] == ["sums.json"]


def test_an_evaluation_that_broke_off_goes_on_unless_told_to_start_again(
    tiny_model: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.evaluation import measuring

    command = [str(tiny_model), "--data", data, "--registry", str(tmp_path / "r"), "--latency-prompts", "0", *QUICK]

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def broken_off(*more: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(measuring, "row_losses", killed)
            assert run_verb("evaluate", [*command, *more]) == 130
        capsys.readouterr()

    broken_off()
    broken_off()
    assert run_verb("evaluate", command) == 0
    assert "sums: 4 of 4 answers were there from a run that broke off" in capsys.readouterr().out
    broken_off()
    printed = evaluate(*command, "--fresh", capsys=capsys)
    (result,) = printed["artifacts"][0]["results"]
    assert "resumed_answers" not in result["settings"]
    assert result["cost"]["generated_tokens"] == sum(row["generated_tokens"] for row in result["rows"])
    assert result["cost"]["latency_n"] == 0


def test_human_text_is_a_table_that_fits(
    tiny_model: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_verb("evaluate", [str(tiny_model), "--data", data, "--registry", str(tmp_path / "r"), *QUICK]) == 0
    table = capsys.readouterr().out.split("Evaluation\n")[1]
    assert "best floor" in table
    assert max(map(len, table.split("not shown")[0].splitlines())) <= 80


def test_a_foreign_adapter_is_not_loaded_on_a_guess(
    adapter: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb("evaluate", [str(adapter), "--data", data, "--registry", str(tmp_path / "r"), *QUICK]) == 2
    assert "which quantization its base had in training is recorded nowhere; --method names it" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_an_explicit_recipe_decides_what_the_base_is_and_where_results_go(
    adapter: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [str(adapter), "--data", data, "--registry", str(tmp_path / "r"), *QUICK]
    found = {method: evaluate(*common, "--method", method, capsys=capsys)["artifacts"][0] for method in ("NoQuant", "QLORA")}
    assert found["NoQuant"]["quantization"]["weights_dtype"] == "bfloat16"
    assert found["QLORA"]["quantization"]["weights_dtype"] == "nf4"
    assert found["QLORA"]["kind"] == "adapter"
    assert found["NoQuant"]["artifact"] != found["QLORA"]["artifact"]


def test_our_adapter_comes_on_the_base_it_was_trained_on(
    adapter: Path, tiny_model: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = our_adapter(adapter, tiny_model, tmp_path, fingerprint_base(tiny_model))
    printed = evaluate(str(folder), "--data", data, "--registry", str(tmp_path / "r"), *QUICK, capsys=capsys)
    artifact = printed["artifacts"][0]
    assert artifact["quantization"]["weights_dtype"] == "nf4"
    assert artifact["artifact"] == artifact_hash(folder)
    assert artifact["results"][0]["settings"]["system_prompt"] == "Add up."


def test_an_adapter_on_another_base_than_in_training_ends_with_code_3(
    adapter: Path, tiny_model: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = our_adapter(adapter, tiny_model, tmp_path, "sha256:" + "0" * 64)
    assert run_verb("evaluate", [str(folder), "--data", data, "--registry", str(tmp_path / "r"), *QUICK]) == 3
    assert "was trained on another base than" in capsys.readouterr().err


def our_adapter(adapter: Path, base: Path, parent: Path, fingerprint: str) -> Path:
    from quantkit.methods import installed_methods
    from quantkit.plan import AdapterPlan, PlanContext

    plan = installed_methods().plan("QLORA", {}, PlanContext(adapter=AdapterPlan(r=4)))
    name = f"{base.name}-sums_SFT_LoRa4_QLORA_w4_headbf16"
    folder = parent / name
    shutil.copytree(adapter, folder)
    record = ArtifactRecord(
        name=name,
        kind="adapter",
        quantization=plan.spec,
        recipe=plan,
        adapter=plan.adapter,
        base=BaseReference(name_or_path=str(base), fingerprint=fingerprint),
        data={"system_prompt": "Add up."},
    )
    write_record(folder, record)
    write_manifest(folder)
    return folder


def test_a_dense_model_can_be_quantized_while_loading_under_a_key_of_its_own(
    tiny_model: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [str(tiny_model), "--data", data, "--registry", str(tmp_path / "r"), *QUICK]
    artifact = evaluate(*common, "--method", "BNB4BIT", capsys=capsys)["artifacts"][0]
    assert artifact["quantization"]["method"] == "BNB4BIT"
    assert artifact["quantization"]["weights_bits"] == 4
    assert artifact["artifact"] != fingerprint_base(tiny_model).removeprefix("sha256:")


def test_changed_files_end_with_code_3(
    adapter: Path, tiny_model: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = our_adapter(adapter, tiny_model, tmp_path, fingerprint_base(tiny_model))
    (folder / "adapter_config.json").write_text((folder / "adapter_config.json").read_text() + "\n")
    assert run_verb("evaluate", [str(folder), "--data", data, *QUICK]) == 3
    assert "adapter_config.json has" in capsys.readouterr().err


def test_several_paths_run_in_their_own_processes_and_one_failure_costs_only_itself(
    tiny_model: Path, data: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "quantkit_tools.cli", "evaluate", str(tmp_path), str(tiny_model), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--data", data, "--registry", str(tmp_path / "r"), *QUICK],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 2
    printed = json.loads(done.stdout)
    assert [artifact["path"] for artifact in printed["artifacts"]] == [str(tiny_model)]
    assert [(failure["path"], failure["exit_code"]) for failure in printed["failed"]] == [(str(tmp_path), 2)]
    assert "was not evaluated" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no path was given"),
        (["/nowhere/at/all"], "no such file or folder"),
        (["TINY", "--data", "missing.jsonl"], "there is no such file or folder"),
        (["TINY", "--task", "numbers"], "no task is called 'numbers'"),
        (["TINY", "--method", "QLORRA"], "Did you mean 'QLORA'?"),
        (["TINY", "--base", "x"], "is a whole model; --base names the base of an adapter"),
        (["TINY", "--limit", "0"], "limit is 0"),
        (["TINY", "--batch-size", "0", "--limit", "1"], "batch_size is 0"),
        (["TINY", "--latency-prompts", "-1", "--limit", "1"], "latency_prompts is -1"),
        (["TINY", "--device", "tpu:x"], "device is 'tpu:x'"),
        (["TINY", "--registry", "FILE"], "is a file; a registry is a folder"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_code_2(
    arguments: list[str], said: str, tiny_model: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [{"TINY": str(tiny_model), "FILE": data}.get(word, word) for word in arguments]
    assert run_verb("evaluate", given) == 2
    errors = capsys.readouterr().err.splitlines()
    assert said in errors[-1]
    assert errors[-1].startswith("error: ")


def test_results_that_cannot_be_written_are_one_line(
    tiny_model: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "results").write_text("in the way")
    arguments = [str(tiny_model), "--data", data, "--registry", str(tmp_path / "r"), *QUICK]
    assert run_verb("evaluate", arguments) == 2
    assert "results cannot be written" in capsys.readouterr().err


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom quantkit_tools.cli import main\n"
        "try:\n    main(['evaluate', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'peft')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0
    assert "--max-new-tokens" in done.stdout
