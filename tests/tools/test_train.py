"""What a run prints, refuses and leaves behind."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from quantkit.memory import MemoryLog
from quantkit_registry.records import read_record
from quantkit_tools.stages import report

SCRIPT = Path(__file__).parents[2] / "Fine-tuning" / "01_Train.py"


def test_a_dry_run_prints_the_plan_and_writes_nothing(settings: list[object], quantkit: Any, tmp_path: Path) -> None:
    code, out, _ = quantkit("train", *settings, "--quant-method", "QLORA", "--dry-run")
    assert code == 0
    assert "nf4 weights (4 bit), double quantization" in out
    assert "Tiny-Llama-openmath_SFT_LoRa4_QLORA_w4_headbf16_mergedbf16" in out
    assert not (tmp_path / "artifacts").exists()


def test_no_data_set_saves_a_snapshot(tiny_model: Path, read_json: Any, tmp_path: Path) -> None:
    flags = ["--model-name-or-path", tiny_model, "--output-dir", tmp_path]
    artifact = Path(read_json("train", *flags)["artifact"])
    assert artifact.name == "Tiny-Llama-base"
    assert read_record(artifact).training == {}


def test_a_snapshot_can_be_quantized(tiny_model: Path, read_json: Any, tmp_path: Path) -> None:
    flags = ["--model-name-or-path", tiny_model, "--output-dir", tmp_path, "--quant-method", "BNB4BIT", "--double-quant"]
    artifact = Path(read_json("train", *flags)["artifact"])
    assert artifact.name == "Tiny-Llama-base_BNB4BIT_w4_dq_headbf16"
    detected = read_json("registry", "detect", artifact)["detections"][0]
    assert detected["spec"]["weights_dtype"] == "nf4"
    assert detected["spec"]["double_quant"] is True


def test_the_script_runs_with_its_constants_edited(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    text = SCRIPT.read_text()
    for name, value in {
        "MODEL": str(tiny_model),
        "DATASET_CHOICE": f"openmath:{rows}",
        "TRUNC_TRAIN": 8,
        "lora_r": 2,
        "output_dir": str(tmp_path / "made"),
    }.items():
        line = next(line for line in text.splitlines() if line.startswith(f"{name} = "))
        text = text.replace(line, f"{name} = {value!r}")
    script = tmp_path / "01_Train.py"
    script.write_text(text)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made" / "Tiny-Llama-openmath_SFT_LoRa2_QLORA_w4_headbf16_mergedbf16" / "model.safetensors").is_file()


@pytest.mark.parametrize(("before", "said"), [(2.5, "loss of 4 held-out rows: 2.500 -> 1.250"), (None, "rows: 1.250")])
def test_the_loss_on_held_out_rows_is_told(before: float | None, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    trained = SimpleNamespace(
        steps=2, duration_s=1.0, losses=[3.0, 2.0], tokens_per_s=8.0,
        evaluation_loss_before=before, evaluation_loss_after=1.25, evaluation_rows=4,
    )  # fmt: skip
    report(cast(Any, SimpleNamespace(target="made")), cast(Any, trained), MemoryLog())
    out = capsys.readouterr().out
    assert said in out
    assert "trained 2 steps in 1.0 s: loss 3.000 -> 2.000, 8 tokens/s" in out


@pytest.mark.parametrize(
    ("edited", "flags", "said"),
    [
        ("MODEL = '/nowhere'", [], "error: /nowhere: no such folder"),
        ("MODLE = 'a'", [], "MODLE"),
        ("", ["--dry-run"], "error: the script takes no flags, found --dry-run; edit its constants, or use quantkit train"),
    ],
)
def test_what_is_wrong_with_the_script_is_one_line(edited: str, flags: list[str], said: str, tmp_path: Path) -> None:
    script = tmp_path / "01_Train.py"
    script.write_text(SCRIPT.read_text().replace("\nif __name__", f"\n{edited}\nif __name__"))
    done = subprocess.run([sys.executable, script, *flags], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_float_answers_are_learnt_as_boxed_integers(tiny_model: Path, quantkit: Any, tmp_path: Path) -> None:
    """The published failure: a float column that the chat template rendered as nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"question": ["What is 3 + 4?", "What is 500 + 508?"] * 4, "answer": [7.0, 1008.0] * 4})
    pq.write_table(table, tmp_path / "train.parquet")
    flags = ["--model-name-or-path", tiny_model, "--dataset-name", f"openmath:{tmp_path / 'train.parquet'}", "--max-steps", 1]
    code, out, _ = quantkit("train", *flags, "--lora-r", 2, "--output-dir", tmp_path / "made")
    assert code == 0
    assert "7.0" in out  # the conversion is told


def test_an_existing_artifact_is_not_replaced(settings: list[object], quantkit: Any) -> None:
    assert quantkit("train", *settings)[0] == 0
    code, _, err = quantkit("train", *settings)
    assert code == 2
    assert "exists; choose another output folder or pass --overwrite" in err
    assert quantkit("train", *settings, "--overwrite")[0] == 0


def _faults(tmp_path: Path) -> dict[str, tuple[list[object], str]]:
    (tmp_path / "no_model").mkdir()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 this is no parquet file")
    (tmp_path / "columns.jsonl").write_text('{"query": "1+1?", "reply": "2"}\n')
    (tmp_path / "file").write_text("")
    return {
        "missing model": (["--model-name-or-path", tmp_path / "nowhere"], "nowhere: no such folder"),
        "empty model folder": (["--model-name-or-path", tmp_path / "no_model"], "config.json"),
        "wrong column": (["--dataset-name", tmp_path / "columns.jsonl"], "query"),
        "corrupt parquet": (["--dataset-name", tmp_path / "bad.parquet"], "bad.parquet"),
        "missing data": (["--dataset-name", tmp_path / "none.jsonl"], "there is no such file"),
        "unknown method": (["--quant-method", "QLORAA"], "Did you mean 'QLORA'?"),
        "unknown layer": (["--target-modules", "qq_proj"], "q_proj"),
        "unwritable folder": (["--output-dir", tmp_path / "file" / "sub"], "file"),
        "unknown flag": (["--lora-alfa", "4"], "Did you mean --lora-alpha?"),
        "head of an adapter": (["--no-merge-after-train", "--keep-lm-head-fp16"], "only the adapter is saved"),
    }


@pytest.mark.parametrize(
    "fault",
    [
        "missing model", "empty model folder", "wrong column", "corrupt parquet", "missing data", "unknown method",
        "unknown layer", "unwritable folder", "unknown flag", "head of an adapter",
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_2(fault: str, settings: list[object], quantkit: Any, tmp_path: Path) -> None:
    flags, said = _faults(tmp_path)[fault]
    names = set(map(str, flags[::2]))
    pairs = list(zip(settings[::2], settings[1::2], strict=True))
    kept = [item for name, value in pairs if str(name) not in names for item in (name, value)]
    code, _, err = quantkit("train", *kept, *flags)
    assert code == 2, err
    error = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert said in error[0]
    assert "Traceback" not in err
    assert not (tmp_path / "artifacts").exists() or not any((tmp_path / "artifacts").iterdir())


def test_a_run_file_of_the_finance_study_runs_unchanged(tiny_model: Path, read_json: Any, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(
        "".join(
            json.dumps({"context": f"Is {word} good news?", "target": "positive"}) + "\n" for word in ("gain", "rise", "win")
        )
    )
    run = {
        "base_model": str(tiny_model),
        "dataset_path": str(tmp_path / "data.jsonl"),
        "lora_r": 4,
        "quant_bits": 4,
        "learning_rate": 1e-4,
        "num_epochs": 1,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "peft_use_dora": False,
        "peft_use_rslora": False,
    }
    (tmp_path / "runs.json").write_text(json.dumps({"sentiment_4bits_r4": run, "sentiment_8bits_r8": run | {"quant_bits": 8}}))
    flags = ["--config", tmp_path / "runs.json", "--run", "sentiment_4bits_r4", "--output-dir", tmp_path / "made"]
    record = read_record(Path(read_json("train", *flags)["artifact"]))
    assert record.recipe.method == "QLORA"
    assert record.adapter is not None
    assert record.adapter.r == 4


def test_a_signal_saves_a_checkpoint_and_the_run_goes_on_from_it(
    settings: list[object], read_json: Any, tmp_path: Path
) -> None:
    flags = [str(item) for item in settings]
    flags[flags.index("--max-steps") + 1] = "40"
    command = [sys.executable, "-u", "-m", "quantkit_tools.cli", "train", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("train: 1/40"):
                process.send_signal(signal.SIGTERM)
        process.wait(timeout=120)
        assert process.returncode == 130, process.stderr.read() if process.stderr else ""
    assert not list((tmp_path / "artifacts").glob("Tiny*"))
    record = read_record(Path(read_json("train", *flags, "--resume-from-checkpoint")["artifact"]))
    assert record.training["resumed_from"] >= 1
    assert record.training["steps"] == 40
    assert len(record.training["losses"]) == 40
    assert not (tmp_path / "artifacts" / ".checkpoints" / record.name).exists()
