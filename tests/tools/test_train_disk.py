"""Is a run whose result will not fit on the disk stopped before it trains?"""

import shutil
from pathlib import Path
from typing import Any

import pytest

from quantkit import saving
from quantkit_registry.records import read_record


def test_a_run_whose_artifact_will_not_fit_on_the_disk_is_refused_before_it_loads_unless_it_is_forced(
    settings: list[object], quantkit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda path: real(path)._replace(free=1 << 20))
    code, out, err = quantkit("train", *settings)
    assert code == 2
    assert "artifacts: the artifact needs 6" in err
    assert "1.0 MiB are free; free some space or choose another output folder, or start all the same with --force" in err
    assert "train:" not in out
    assert not list((tmp_path / "artifacts").glob("*_SFT_*"))
    monkeypatch.setattr("quantkit.saving.require_space", lambda _folder, _needed: None)  # there is room again at the end
    code, out, err = quantkit("train", *settings, "--no-merge-after-train", "--save-steps", 1, "--force")
    assert code == 0
    assert "the artifact needs 6" in err
    assert "started all the same, as force is set" in err
    record = read_record(next((tmp_path / "artifacts").glob("*_SFT_*")))
    assert record.kind == "adapter"


def test_a_run_that_folds_its_adapters_in_needs_room_for_its_last_checkpoint_too(
    settings: list[object], quantkit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda path: real(path)._replace(free=1 << 20))
    settings[settings.index("--lora-r") + 1] = 64
    said = [quantkit("train", *settings, *more)[2] for more in ([], ["--save-steps", 1])]
    assert said[0] == said[1]
    assert "the artifact needs 7" in said[0]  # MiB: 64 to spare, 1 of weights, 12 bytes for each trained parameter
