"""What commands are run on, and adapters that commands have made."""

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.data.arithmetic import arithmetic_data
from quantkit_tools.cli import run_verb


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of 24 arithmetic rows."""
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in arithmetic_data(train=24).train))
    return path


@pytest.fixture
def settings(tiny_model: Path, rows: Path, tmp_path: Path) -> list[object]:
    """Flags of a run of two steps into `tmp_path / "artifacts"`."""
    return [
        "--model-name-or-path", tiny_model, "--dataset-name", f"openmath:{rows}", "--max-steps", 2, "--lora-r", 4,
        "--per-device-train-batch-size", 4, "--learning-rate", "1e-2", "--output-dir", tmp_path / "artifacts",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of 16 arithmetic rows that no adapter was trained on."""
    path = tmp_path_factory.mktemp("held_out") / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in arithmetic_data(train=24, held_out=16).unseen_numbers))
    return path


@pytest.fixture(scope="session")
def kept(tiny_model: Path, rows: Path, held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kept QLORA adapter that has learnt something; treat it as read-only."""
    return kept_adapter(tiny_model, rows, tmp_path_factory.mktemp("kept"), "--eval-dataset-name", held_out)


def kept_adapter(model: Path, rows: Path, folder: Path, *more: object, method: str = "QLORA", steps: int = 8) -> Path:
    """Train an adapter without merging it; return its folder."""
    flags = [
        "--model-name-or-path", model, "--dataset-name", f"openmath:{rows}", "--max-steps", steps, "--lora-r", 4,
        "--per-device-train-batch-size", 8, "--learning-rate", "1e-2", "--output-dir", folder, "--quant-method", method,
        "--no-merge-after-train", *more,
    ]  # fmt: skip
    before = set(folder.glob("*"))
    assert run_verb("train", [str(flag) for flag in flags]) == 0
    return next(path for path in set(folder.glob("*_SFT_*")) - before)


@pytest.fixture
def write_sweep(tiny_model: Path, rows: Path, tmp_path: Path) -> Any:
    """Write a sweep file over the tiny model and two steps of training; return its path."""

    def make(base: dict[str, Any] | None = None, **sections: Any) -> Path:
        settings = {
            "model_name_or_path": str(tiny_model),
            "dataset_name": f"openmath:{rows}",
            "max_steps": 2,
            "lora_r": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "output_dir": str(tmp_path / "artifacts"),
        }
        path = tmp_path / "small.json"
        path.write_text(json.dumps({"base": settings | (base or {})} | sections))
        return path

    return make
