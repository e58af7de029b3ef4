"""Does a run say what it will take, stop where that is more than there is, and keep what it has when memory runs out?"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quantkit.errors import UsageError
from quantkit.forecasting.constants import CONSTANTS
from quantkit.forecasting.forecast import forecast_run
from quantkit.forecasting.learning import FILE, constants_for
from quantkit.forecasting.measured import read_measured
from quantkit.forecasting.nearest import as_flags, lighter
from quantkit.forecasting.reading import read_shape
from quantkit.forecasting.settings import RunSettings
from quantkit.memory import MemoryLog, StagePeak
from quantkit.plan import AdapterPlan, QuantizationPlan, Stage
from quantkit.spec import QuantizationSpec
from quantkit.training import loop
from quantkit_registry.records import read_record
from quantkit_tools import forecast_learning, foresight
from quantkit_tools.forecast_learning import calibrate, tell_if_above
from quantkit_tools.foresight import Foresight, advice, require_room, room_bytes

README = Path(__file__).parents[2] / "registry" / "README.md"
GIB = 1 << 30


def foreseen(model: Path, room: int, *, rows: int = 8, length: int = 512, **changes: Any) -> Foresight:
    """Return what is foreseen of a run on the tiny model in so much memory; libraries and allocators take nothing."""
    spec = QuantizationSpec.dense("bfloat16")
    plan = QuantizationPlan(
        method="NoQuant", stage=Stage.BASE, spec=spec, adapter=AdapterPlan(r=4, lora_alpha=8), compute_dtype="bfloat16"
    )
    settings = RunSettings(plan=plan, rows=rows, length=length, **({"merges": False} | changes))
    constants = CONSTANTS.with_changes(process_bytes=0, compiled_bytes=0, varied_bytes=0, cpu_slack=0.0, coverage=0.9, runs=50)
    return Foresight(forecast_run(read_shape(str(model)), settings, constants), room, 0)


def short_of(model: Path, share: float, **how: Any) -> Foresight:
    """Return what is foreseen where so large a share of the forecast is there."""
    return foreseen(model, round(foreseen(model, 0, **how).forecast.peak_bytes * share), **how)


def test_a_run_keeps_its_forecast_beside_its_measurement(settings: list[object], quantkit: Any, tmp_path: Path) -> None:
    code, out, _ = quantkit("train", *settings, "--no-merge-after-train")
    assert code == 0
    assert "memory expected at the peak" in out
    memory = read_record(next((tmp_path / "artifacts").glob("*_SFT_*"))).memory
    forecast = memory["forecast"]
    assert forecast["room_bytes"] > forecast["held_bytes"] > 0
    assert forecast["forced"] is False
    run = read_measured(memory)
    assert run is not None
    assert 0 < run.counted_bytes < forecast["peak_bytes"]
    section = README.read_text().split("### `memory.forecast`\n")[1].split("\n#")[0]
    for key in forecast:
        assert f"`{key}`" in section, f"registry/README.md does not explain memory.forecast.{key}"


def test_a_run_that_will_not_fit_is_refused_before_it_loads_unless_it_is_forced(
    settings: list[object], quantkit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foresight, "free_bytes", lambda _: 0)
    monkeypatch.setattr(foresight, "own_bytes", lambda _: 1 << 20)
    code, out, err = quantkit("train", *settings)
    assert code == 2
    assert "error: memory expected at the peak (" in err
    assert "but only 1.0 MiB are there: " in err
    assert "--force" in err
    assert "train:" not in out
    assert not list((tmp_path / "artifacts").glob("*_SFT_*"))
    code, _, err = quantkit("train", *settings, "--no-merge-after-train", "--force")
    assert code == 0
    assert "started all the same, as force is set" in err
    assert read_record(next((tmp_path / "artifacts").glob("*_SFT_*"))).memory["forecast"]["forced"] is True


def test_when_memory_runs_out_the_settings_that_fit_are_told_and_a_run_with_them_goes_on(
    settings: list[object], quantkit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, calls = loop.StepTrainer.training_step, iter(range(1, 100))

    def exhausted(self: Any, *arguments: Any, **named: Any) -> Any:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return own(self, *arguments, **named)

    monkeypatch.setattr(loop.StepTrainer, "training_step", exhausted)
    code, _, err = quantkit("train", *settings)
    assert code == 1
    error = next(line for line in err.splitlines() if line.startswith("error: "))
    assert "the state after step 1 is in" in error
    assert "--per-device-train-batch-size 2 --gradient-accumulation-steps 2 learns the same in" in error
    assert "Go on with resume_from_checkpoint=true" in error
    smaller = [*settings, "--gradient-accumulation-steps", 2, "--resume-from-checkpoint"]
    smaller[smaller.index("--per-device-train-batch-size") + 1] = 2
    assert quantkit("train", *smaller)[0] == 0


def test_smaller_batches_come_before_computing_twice_and_the_steps_stay_the_same(tiny_model: Path) -> None:
    settings = foreseen(tiny_model, 0, rows=6, accumulation=2).forecast.settings
    found = list(lighter(settings))
    assert [(item.rows, again) for item, again in found] == [
        (6, False), (4, False), (3, False), (2, False), (1, False), (1, True),
    ]  # fmt: skip
    assert {item.rows * item.accumulation for item, _ in found} == {12}


@pytest.mark.parametrize(
    ("share", "flags"),
    [
        (
            0.6,
            "--per-device-train-batch-size 4 --gradient-accumulation-steps 2 learns .*, --recompute full:2,selective:2 in ",
        ),
        (0.125, "--per-device-train-batch-size 1 --gradient-accumulation-steps 8 --recompute selective:2 learns"),
        (1e-9, "no batch size or recomputing makes it fit; quantkit plan .*Tiny-Llama --fit .*methods, ranks and lengths"),
    ],
)
def test_the_nearest_settings_that_fit_are_named_as_flags(share: float, flags: str, tiny_model: Path) -> None:
    with pytest.raises(UsageError, match=flags):
        require_room(short_of(tiny_model, share), force=False)


def test_a_run_whose_merge_does_not_fit_is_told_to_keep_its_adapter(tiny_model: Path) -> None:
    whole = foreseen(tiny_model, 0, rows=1, length=8, merges=True).forecast
    without = foreseen(tiny_model, 0, rows=1, length=8).forecast
    assert without.peak_bytes < whole.peak_bytes
    found = Foresight(whole, without.peak_bytes, 0)
    assert advice(found, found.room_bytes).startswith("--no-merge-after-train learns")
    assert as_flags(whole.settings, without.settings) == "--no-merge-after-train"


def test_where_only_the_upper_end_is_too_much_the_run_starts_with_a_warning(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = require_room(short_of(tiny_model, 1.05), force=False)
    assert record is not None
    assert record["forced"] is False
    captured = capsys.readouterr()
    assert "memory may not suffice" in captured.err
    assert "(which held for 90% of 50 measured runs); " in captured.out
    require_room(short_of(tiny_model, 2.0), force=False)
    assert capsys.readouterr().err == ""


def test_what_is_there_counts_what_the_process_holds_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foresight, "free_bytes", lambda _: 10)
    assert room_bytes("cpu", held=5, context_bytes=3) == 15
    assert room_bytes("cuda:0", held=5, context_bytes=3) == 18
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert room_bytes("cpu", held=5, context_bytes=3) == 10


def registry_of(memories: list[dict[str, Any]], root: Path) -> Any:
    """Return a registry of artifacts with these memories."""
    made = [
        SimpleNamespace(name=f"run{at}", record=SimpleNamespace(memory=memory, created_at=str(at)))
        for at, memory in enumerate(memories)
    ]
    return lambda _: SimpleNamespace(root=root, artifacts=lambda: made)


def memory_of(counted: int, measured: int) -> dict[str, Any]:
    settings = {"device": "cpu", "length": 8, "mean_length": 8}
    forecast = {"settings": settings, "moments": [{"name": "loss", "items": {"activations": counted}}]}
    return {"stages": [{"stage": "train", "duration_s": 1.0, "peak_rss_bytes": measured}], "forecast": forecast}


def test_the_runs_of_a_registry_teach_the_next_forecast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    memories = [memory_of(size * GIB, size * GIB + GIB // 2) for size in range(1, 9)]
    broken = {"stages": memories[0]["stages"], "forecast": {"moments": 3}}
    monkeypatch.setattr(forecast_learning, "Registry", registry_of([*memories, {}, broken], tmp_path))
    calibrate(tmp_path, dry_run=True)
    assert not (tmp_path / FILE).exists()
    found = calibrate(tmp_path)
    assert found["runs"] == 8
    assert found["file"] == str(tmp_path / FILE)
    learnt = constants_for("cpu", tmp_path)
    before = constants_for("cpu")
    for size in (1, 3, 8):
        forecasts = [item.process_bytes + (1 + item.cpu_slack) * size * GIB for item in (learnt, before)]
        off, off_before = (abs(found - size * GIB - GIB // 2) for found in forecasts)
        assert off < off_before
    assert (learnt.runs, learnt.runs_before) == (8, before.runs)
    json.dumps(found)
    captured = capsys.readouterr()
    assert "left out: run9: memory.forecast is no forecast" in captured.err
    assert f"8 (and {before.runs} before)" in captured.out


def test_a_run_that_took_more_than_was_expected_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    peak = StagePeak("train", 1.0, 3 * GIB, {}, {})
    for high, said in ((2 * GIB, "the peak was above what was expected (1.00 GiB to 2.00 GiB)"), (3 * GIB, "")):
        tell_if_above(MemoryLog([peak], {"interval": {"low_bytes": GIB, "high_bytes": high}}))
        assert capsys.readouterr().out.startswith(said)
        assert (said == "") == (high == 3 * GIB)
    tell_if_above(MemoryLog([peak]))
    assert capsys.readouterr().out == ""


def test_a_registry_without_a_measured_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast_learning, "Registry", registry_of([{}] * 3, tmp_path))
    with pytest.raises(UsageError, match="no artifact has a forecast beside its measurement"):
        calibrate(tmp_path)
