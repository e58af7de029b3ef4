"""Does a sweep say what its trainings will take, as `quantkit train --dry-run` says it of each?"""

from pathlib import Path
from typing import Any

import pytest

from quantkit.forecasting.timing import Rate
from quantkit_tools import foresight, sweep_outlook
from quantkit_tools.plan_time import EarlierRuns
from quantkit_tools.sweep_outlook import Expected, expected
from tests.tools.sweeps import journal_of, planned

VARY = {"quant_method": ["NoQuant", "QLORA"], "merge": ["kept", "dequantized"], "seed": [1, 2]}


@pytest.fixture
def known_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EarlierRuns, "rate", lambda *_: Rate(1e9, "a rate of the test"))


@pytest.mark.usefixtures("known_rate")
def test_memory_and_time_of_a_dry_run_are_those_of_the_run_itself_and_no_weights_are_read(
    write_sweep: Any, settings: list[object], read_json: Any, quantkit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.delattr(AutoModelForCausalLM, "from_pretrained")
    path = write_sweep(vary=VARY)
    steps = [step for step in read_json("sweep", path, "--dry-run")["steps"] if step["kind"] == "train"]
    for step, method in zip(steps[::2], ("NoQuant", "QLORA"), strict=True):
        run = [*settings, "--quant-method", method, "--seed", 1, "--no-merge-after-train", "--dry-run"]
        told = read_json("train", *run)["forecast"]
        assert step["memory_bytes"] == told["peak_bytes"]
        assert step["time_s"] == pytest.approx(2 * told["step_s"])
        assert step["measured_memory_bytes"] is None
    shown = quantkit("sweep", path, "--dry-run")[1]
    assert "times of trainings are forecast by a rate of the test" in shown
    assert "without 4 steps never measured" in shown  # the merges


def test_runs_that_differ_in_their_seed_only_are_forecast_once(write_sweep: Any, quantkit: Any, monkeypatch: Any) -> None:
    asked, own = [], sweep_outlook.foresee
    monkeypatch.setattr(sweep_outlook, "foresee", lambda run, *more, **how: asked.append(run.name) or own(run, *more, **how))
    assert quantkit("sweep", write_sweep(vary=VARY), "--dry-run")[0] == 0
    assert len(asked) == 2


def test_runs_that_will_not_fit_are_named_and_what_would(write_sweep: Any, quantkit: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(foresight, "room_bytes", lambda *_, **__: 1 << 20)
    path = write_sweep(vary={"seed": [1, 2]})
    code, _, err = quantkit("sweep", path, "--dry-run")
    assert code == 0
    names = ", ".join(step.name for step in planned(path).steps)
    assert f"warning: {names}: memory will not suffice, and the run would be refused: " in err


def test_what_steps_like_it_took_comes_before_the_forecast_and_that_before_what_others_took(write_sweep: Any) -> None:
    plan = planned(write_sweep(vary=VARY | {"merge": ["kept"]}))
    journal, (first, second, other, _) = journal_of(plan), plan.steps
    forecast = {step.name: Expected(5.0, 7, "a rate") for step in plan.steps}
    assert expected(other, journal, forecast) == Expected(5.0, 7, "a rate")
    journal.write(first, "done", duration_s=2.0)
    assert expected(second, journal, forecast) == Expected(2.0, 7)
    assert expected(other, journal, forecast) == Expected(5.0, 7, "a rate")
    assert expected(other, journal, {}) == Expected(2.0)


def test_rates_are_those_of_the_registry_and_of_the_folder_that_is_written_to(
    read_json: Any, settings: list[object], tmp_path: Path, quantkit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTKIT_REGISTRY", str(tmp_path / "elsewhere"))
    made = Path(read_json("train", *settings)["artifact"])
    said = quantkit("train", *settings, "--seed", 2, "--quant-method", "QLORA", "--dry-run")[1]
    assert f"(the rate of {made.name} (NoQuant): " in said
