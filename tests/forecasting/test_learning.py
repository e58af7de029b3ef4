"""Do a machine's runs make its next forecast better, and does an interval hold as often as it says?"""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import UsageError
from quantkit.forecasting.constants import CONSTANTS, Constants
from quantkit.forecasting.learning import (
    FILE,
    SPREADS,
    constants_for,
    expected,
    fit,
    interval,
    read_calibration,
    shipped,
    write_calibration,
)
from quantkit.forecasting.measured import Measured, read_measured

MB = 10**6


def made_run(counted: int, measured: int) -> Measured:
    """Return a CPU run in which everything comes and goes."""
    return Measured(device="cpu", counted_bytes=counted, passing_bytes=counted, measured_bytes=measured)


def runs(number: int, *, base: int = 460 * MB, factor: float = 1.4, noise: float = 0.0, seed: int = 0) -> list[Measured]:
    """Return CPU runs whose peaks lie on a line, with relative noise."""
    chance = random.Random(seed)
    made = []
    for _ in range(number):
        counted = chance.randrange(100 * MB, 3000 * MB)
        measured = (base + factor * counted) * (1 + noise * chance.uniform(-1, 1))
        made.append(made_run(counted, round(measured)))
    return made


def test_what_a_process_takes_anyway_is_told_from_what_grows_with_the_model() -> None:
    learnt = fit(runs(20), "cpu")
    assert learnt.process_bytes < CONSTANTS.process_bytes
    assert learnt.cpu_slack > CONSTANTS.cpu_slack
    for run in runs(20, seed=1):
        assert expected(run, learnt) == pytest.approx(run.measured_bytes, rel=0.12)
    assert (learnt.low, learnt.high) == pytest.approx((1, 1), abs=0.1)
    assert learnt.runs == 20
    assert "20 runs on this machine" in learnt.source


def test_a_few_strange_runs_move_little() -> None:
    strange = [made_run(500 * MB, 30_000 * MB) for _ in range(4)]
    learnt, without = fit([*runs(20), *strange], "cpu"), fit(runs(20), "cpu")
    for run in runs(20, seed=3):
        assert expected(run, learnt) == pytest.approx(expected(run, without), rel=0.03)


def test_what_compiled_products_take_is_learnt_of_runs_that_compile() -> None:
    compiling = [replace(run, measured_bytes=run.measured_bytes + 300 * MB, compiles=True) for run in runs(20, seed=1)]
    learnt = fit([*runs(20), *compiling], "cpu")
    assert learnt.compiled_bytes - CONSTANTS.compiled_bytes > 80 * MB


def test_of_weights_that_stay_no_share_is_held_beyond() -> None:
    """Twice what comes and goes is held; what stays is held once."""
    made = [
        Measured(device="cpu", counted_bytes=size + 900 * MB, passing_bytes=size, measured_bytes=2 * size + 1400 * MB)
        for size in range(100 * MB, 2000 * MB, 100 * MB)
    ]
    learnt = fit(made, "cpu")
    assert learnt.cpu_slack > 0.6
    assert expected(made[0], learnt) == pytest.approx(made[0].measured_bytes, rel=0.1)


def test_the_peak_may_be_where_nothing_is_computed() -> None:
    """Weights in two data types at once, of short rows: nothing is learnt from it about compiled products."""
    made = [replace(run, compiles=True, beside_bytes=3 * run.counted_bytes) for run in runs(9)]
    assert fit(made, "cpu").compiled_bytes == CONSTANTS.compiled_bytes


def test_what_rows_of_different_lengths_take_besides_is_learnt_apart() -> None:
    varied = [replace(run, measured_bytes=run.measured_bytes + 300 * MB, varied=True) for run in runs(20, seed=1)]
    learnt = fit([*runs(20), *varied], "cpu")
    assert learnt.varied_bytes - CONSTANTS.varied_bytes > 150 * MB
    assert learnt.process_bytes < CONSTANTS.process_bytes


BELIEVED = Constants(
    process_bytes=700 * MB, cpu_slack=0.1, varied_bytes=70 * MB, low=0.918, high=1.082, coverage=0.9, runs=60, source="others"
)
"""What is believed before the first run; errors are normal, 5 %."""


def machine(start: Constants, chance: random.Random, number: int, spread: float = 1.0) -> list[Measured]:
    """Return runs on a machine whose true constants are drawn from what is believed before, with 5 % of noise."""
    bytes_, slack, varied = (chance.gauss(0, spread) * SPREADS[name] for name in ("process_bytes", "cpu_slack", "varied_bytes"))
    true = start.with_changes(
        process_bytes=round(start.process_bytes + bytes_),
        cpu_slack=start.cpu_slack + slack,
        varied_bytes=max(round(start.varied_bytes + varied), 0),
    )
    made = []
    for _ in range(number):
        run = replace(made_run(round(2 ** chance.uniform(27.5, 32)), 0), varied=chance.random() < 0.5)
        made.append(replace(run, measured_bytes=round(expected(run, true) * (1 + chance.gauss(0, 0.05)))))
    return made


def errors_and_held(
    start: Constants, seed: int, counts: tuple[int, ...], spread: float = 1.0
) -> tuple[list[float], list[float]]:
    """Return the mean error on a machine's other runs after so many, and how often its intervals held less what they said."""
    made = machine(start, random.Random(seed), 70, spread)
    own, others = made[:30], made[30:]
    errors, held = [], []
    for count in counts:
        learnt = fit(own[:count], "cpu", start=start) if count else start
        ratios = [run.measured_bytes / expected(run, learnt) for run in others]
        errors.append(sum(abs(1 / ratio - 1) for ratio in ratios) / len(ratios))
        held.append(sum(learnt.low <= ratio <= learnt.high for ratio in ratios) / len(ratios) - (learnt.coverage or 0))
    return errors, held


def test_each_run_of_a_machine_makes_its_forecasts_better_and_intervals_hold_as_often_as_they_say() -> None:
    found = [errors_and_held(BELIEVED, seed, (0, 1, 3, 10, 30)) for seed in range(40)]
    errors, held = ([sum(each) / len(found) for each in zip(*part, strict=True)] for part in zip(*found, strict=True))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.75 * errors[0]
    assert all(less > -0.05 for less in held[1:])


def test_one_run_on_a_machine_like_the_shipped_one_does_little_harm() -> None:
    found = [errors_and_held(BELIEVED, seed, (0, 1, 3), spread=0)[0] for seed in range(40)]
    before, one, three = (sum(each) / len(found) for each in zip(*found, strict=True))
    assert max(one, three) < before + 0.01


def test_where_all_runs_are_of_one_size_what_they_take_is_learnt_all_the_same() -> None:
    alike = [made_run(1000 * MB + at, 1900 * MB) for at in range(20)]
    assert expected(alike[0], fit(alike, "cpu")) == pytest.approx(1900 * MB, rel=0.01)


def test_without_a_run_nothing_is_fitted() -> None:
    with pytest.raises(UsageError, match="no run on cpu has a forecast beside its measurement"):
        fit([], "cpu")
    with pytest.raises(UsageError, match="no run on cuda"):
        fit(runs(9), "cuda")


def test_of_few_runs_it_is_said_beside_which_others_they_stand() -> None:
    start = shipped()["cpu"]
    learnt = fit(runs(1), "cpu", start=start)
    assert (learnt.runs, learnt.runs_before) == (1, start.runs)
    assert learnt.source.startswith("1 run on this machine, ")
    assert start.source in learnt.source
    assert fit(runs(20), "cpu", start=start).runs_before == 0


def test_on_a_gpu_the_share_that_the_allocator_reserves_is_learnt() -> None:
    made = [
        Measured(device="cuda", counted_bytes=size * MB, measured_bytes=size * MB, reserved_bytes=round(size * 1.3) * MB)
        for size in range(1000, 21000, 1000)
    ]
    learnt = fit(made, "cuda", start=CONSTANTS)
    assert learnt.cuda_slack == pytest.approx(0.3, abs=0.02)
    assert CONSTANTS.cuda_slack < fit(made[:1], "cuda", start=CONSTANTS).cuda_slack < learnt.cuda_slack
    assert learnt.process_bytes == CONSTANTS.process_bytes


def test_the_interval_holds_for_new_runs_as_often_as_it_says() -> None:
    """Forty runs are learnt from, a thousand others counted, five times over; the interval aims at 90 %."""
    inside = said = 0.0
    for seed in range(5):
        learnt = fit(runs(40, noise=0.1, seed=seed), "cpu")
        others = runs(1000, noise=0.1, seed=100 + seed)
        held = [learnt.low <= run.measured_bytes / expected(run, learnt) <= learnt.high for run in others]
        inside += sum(held) / len(held) / 5
        said += (learnt.coverage or 0) / 5
    assert said >= 0.9
    assert inside == pytest.approx(said, abs=0.05)


def test_few_runs_are_all_inside_which_covers_less() -> None:
    assert interval([0.8, 1.0, 1.3, 1.1, 0.95]) == (0.8, 1.3, pytest.approx(4 / 6, abs=1e-3))
    assert interval([1.2, 1.3, 1.4, 1.5, 1.6])[0] == 1.0  # the forecast itself is inside
    assert interval([1 + number / 100 for number in range(-50, 50)])[2] == pytest.approx(0.9, abs=0.02)


def test_a_machines_own_constants_come_before_the_shipped_ones(tmp_path: Path) -> None:
    mine = CONSTANTS.with_changes(process_bytes=7, runs=9, coverage=0.8)
    write_calibration(tmp_path / FILE, "cpu", mine)
    assert constants_for("cpu", tmp_path / "none", tmp_path) == mine
    assert constants_for("cuda:0", tmp_path) == shipped().get("cuda", CONSTANTS)
    assert constants_for("cpu") == shipped()["cpu"]


def test_one_kind_of_device_does_not_replace_the_other(tmp_path: Path) -> None:
    for device in ("cuda", "cpu"):
        write_calibration(tmp_path / FILE, device, CONSTANTS.with_changes(source=device))
    assert {device: item.source for device, item in read_calibration(tmp_path / FILE).items()} == {"cpu": "cpu", "cuda": "cuda"}


def test_the_shipped_constants_say_what_they_were_fitted_to() -> None:
    constants = shipped()["cpu"]
    assert constants.runs >= 40
    assert constants.coverage is not None
    assert "benchmarks/forecast.py" in constants.source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version must be 1"),
        ({"cpu": {"process_bytes": "many"}}, "process_bytes"),
        ({"cpu": {"process_byte": 1}}, "process_byte"),
        ({"cpu": {"process_bytes": -1}}, "process_bytes must not be negative"),
        ({"cpu": {"low": 1.2}}, r"low is 1.2 and high 1.15; 1 must lie between them"),
    ],
)
def test_a_damaged_calibration_is_an_error_that_names_file_and_key(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_text(json.dumps({"schema_version": 1} | change))
    with pytest.raises(UsageError, match=rf"{FILE}.*{message}"):
        read_calibration(tmp_path / FILE)


def memory(**forecast: Any) -> dict[str, Any]:
    """Return what a record keeps of a CPU run's memory."""
    settings = {"device": "cpu", "length": 8, "mean_length": 8.0, "arithmetic": "bfloat16"}
    moments = [
        {"name": "load", "items": {"weights": 9}},
        {"name": "loss", "items": {"nf4 weights": 3, "activations": 2}},
        {"name": "step", "items": {"weights": 3, "adapters": 2, "gradients": 1}},
    ]
    stages = [
        {"stage": "load", "duration_s": 1.0, "peak_rss_bytes": 70},
        {"stage": "train", "duration_s": 2.0, "peak_rss_bytes": 80},
    ]
    return {"stages": stages, "forecast": {"settings": settings, "moments": moments} | forecast}


def test_of_a_record_the_training_stage_is_read() -> None:
    run = read_measured(memory(), name="a")
    assert run == Measured(
        device="cpu",
        counted_bytes=5,
        passing_bytes=2,
        beside_bytes=6,
        beside_passing_bytes=1,
        compiles=True,
        measured_bytes=80,
        name="a",
    )


def test_on_a_gpu_the_fullest_one_is_read() -> None:
    found = memory(settings={"device": "cuda", "length": 8, "mean_length": 5.5})
    assert read_measured(found) is None  # nothing was measured there
    found["stages"][1] |= {
        "peak_allocated_bytes": {"cuda:0": 3, "cuda:1": 8},
        "peak_reserved_bytes": {"cuda:0": 4, "cuda:1": 9},
    }
    run = read_measured(found)
    assert run is not None
    assert (run.measured_bytes, run.reserved_bytes) == (8, 9)


def test_records_without_forecast_or_with_sampled_peaks_teach_nothing() -> None:
    assert read_measured({"stages": memory()["stages"]}) is None
    sampled = memory()
    sampled["stages"][1]["rss_sampled"] = True
    assert read_measured(sampled) is None


def test_what_is_no_forecast_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a: memory\.forecast is no forecast"):
        read_measured(memory(moments="none"), name="a")
