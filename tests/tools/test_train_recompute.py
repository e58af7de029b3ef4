"""Does a run that does not fit compute as much again as it takes, say so, record it, and go on with it?"""

from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit.config import RunConfig
from quantkit.forecasting.choice import step_bytes
from quantkit.training import loop
from quantkit_registry.records import ArtifactRecord, read_record
from quantkit_tools import foresight


def room_for(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let so much memory be there in all."""
    monkeypatch.setattr(foresight, "free_bytes", lambda _: room)
    monkeypatch.setattr(foresight, "own_bytes", lambda _: 0)


def record_of(folder: Path) -> ArtifactRecord:
    return read_record(next(folder.glob("*_SFT_*")))


@pytest.fixture
def flags(settings: list[object]) -> list[object]:
    """Flags of a run of two steps that keeps its adapter."""
    return [*settings, "--compute-dtype", "float32", "--no-merge-after-train"]


def test_a_step_that_does_not_fit_computes_blocks_again_and_a_resumed_run_the_same_ones(
    flags: list[object], quantkit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[foresight.Foresight] = []
    own = foresight.require_room
    monkeypatch.setattr("quantkit_tools.train.require_room", lambda found, **how: (seen.append(found), own(found, **how))[1])

    code, out, _ = quantkit("train", *flags[: flags.index("--output-dir") + 1], tmp_path / "whole", *flags[-3:])
    assert code == 0
    assert "nothing is computed again (recompute auto)" in " ".join(out.split())
    whole = record_of(tmp_path / "whole")
    assert whole.training["recompute"] == "none"

    room_for(step_bytes(seen[0].forecast) - 1, monkeypatch)
    step, calls = loop.StepTrainer.training_step, iter(range(1, 100))

    def exhausted(self: Any, *arguments: Any, **named: Any) -> Any:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, *arguments, **named)

    monkeypatch.setattr(loop.StepTrainer, "training_step", exhausted)
    code, out, err = quantkit("train", *flags)
    assert code == 1
    assert "the state after step 1 is in" in err
    chosen = seen[1].forecast.settings.recompute
    said = " ".join(out.split())
    assert f"recompute auto is {chosen} of 4 decoder blocks" in said
    assert "without, a step takes" in said
    assert chosen != "none"

    room_for(2 * step_bytes(seen[0].forecast), monkeypatch)
    code, out, _ = quantkit("train", *flags, "--resume-from-checkpoint")
    assert code == 0
    assert "more arithmetic, as in the checkpoint" in " ".join(out.split())
    record = record_of(tmp_path / "artifacts")
    assert record.training["recompute"] == chosen
    assert record.training["settings"]["recompute"] == "auto"
    assert record.memory["forecast"]["settings"]["recompute"] == chosen
    assert record.training["losses"] == whole.training["losses"]


def test_every_process_computes_again_what_the_first_one_chose(
    flags: list[object], quantkit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foresight, "said_by_first", lambda _: "full:2")
    assert quantkit("train", *flags)[0] == 0
    assert record_of(tmp_path / "artifacts").training["recompute"] == "full:2"


def test_what_is_named_is_done_whatever_is_there_and_more_blocks_than_there_are_are_refused_before_loading(
    flags: list[object], quantkit: Any, tmp_path: Path
) -> None:
    code, _, err = quantkit("train", *flags, "--recompute", "full:5")
    assert code == 2
    assert "recompute full:5 names 5 decoder blocks, the model has 4; name fewer, or say full" in err
    code, out, _ = quantkit("train", *flags, "--recompute", "selective:1,full:1")
    assert code == 0
    assert "recompute auto" not in out
    assert record_of(tmp_path / "artifacts").training["recompute"] == "full:1,selective:1"


def test_the_default_leaves_the_choice_to_the_forecast() -> None:
    assert RunConfig(model_name_or_path="m").recompute == "auto"
