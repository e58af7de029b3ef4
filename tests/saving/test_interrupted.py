"""The target exists, the disk is full, the process dies: the last good artifact stays, nothing half is left."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import QuantkitError, UsageError
from quantkit.files import artifact_hash
from quantkit.saving import require_space, save_artifact


def test_an_existing_artifact_is_not_replaced_unless_asked_for(dense: Any, tokenizer: Any, tmp_path: Path) -> None:
    model, record = dense
    save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)
    before = artifact_hash(tmp_path / "out")
    with pytest.raises(UsageError, match=r"out exists; choose another output folder or pass --overwrite"):
        save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)
    assert artifact_hash(tmp_path / "out") == before
    save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record | {"data": {"rows": 1}}, overwrite=True)
    assert artifact_hash(tmp_path / "out") != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_too_little_space_is_known_before_writing(
    dense: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1 << 20))
    with pytest.raises(UsageError, match=r"new: the artifact needs 6\d MiB, 1.0 MiB are free; free some space or choose"):
        save_artifact(tmp_path / "new" / "out", model=dense[0], tokenizer=tokenizer, record=dense[1])
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    require_space(tmp_path / "not" / "there", 1)


def test_a_disk_that_fills_up_while_writing_leaves_the_old_artifact_and_nothing_else(
    dense: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, record = dense
    save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)
    before = artifact_hash(tmp_path / "out")

    def full(folder: Path, **_options: Any) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(QuantkitError, match="out: could not be written: No space left on device; nothing was left behind"):
        save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert artifact_hash(tmp_path / "out") == before


KILLED = """
import os, sys
from pathlib import Path
from quantkit.modeling import load_base, load_tokenizer
from quantkit.saving import save_artifact
from tests.saving.runs import METHODS, plan_of, record_of
base, target = Path(sys.argv[1]), Path(sys.argv[2])
plan = plan_of("NoQuant")
model = load_base(str(base), plan=plan, methods=METHODS, device="cpu")
save_artifact(target, model=model, tokenizer=load_tokenizer(str(base)), record=record_of(plan, base),
              verify=lambda folder: os.kill(os.getpid(), 9))
"""


def test_a_killed_run_leaves_no_artifact_and_its_leftovers_are_cleared_later(
    tiny_model: Path, dense: Any, tokenizer: Any, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    root = Path(__file__).parents[2]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tiny_model), str(target)], cwd=root, capture_output=True, check=False
    )
    assert killed.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".writing-")
    assert (left / "model.safetensors").is_file()
    save_artifact(target, model=dense[0], tokenizer=tokenizer, record=dense[1])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
