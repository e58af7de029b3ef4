"""How good are the forecasts of these runs, by constants that were fitted to runs on other models?

Every run is judged by the constants that two shapes of models give which it is not one of: fitted and judged on the same runs,
two constants could hide what the counting gets wrong.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from forecast_cases import FITTED_ON
from goals import Goal

MEDIAN, WITHIN, SHARE, FEWEST = 0.05, 0.10, 0.90, 40
CONSTANTS = ("process_bytes", "cpu_slack", "compiled_bytes", "varied_bytes")
WORST = 8
"""Rows of the worst runs that are printed."""
FOLDING = {"observe": "observe adapter", "merge": "merge", "compare": "compare"}
"""Moment of a forecast → stage of a run."""


def judged(found: Sequence[dict[str, Any]], *, quick: bool, calibration: Path | None) -> dict[str, Any]:
    """Add forecast, measurement and errors to the runs; return summaries, and the constants of each fit."""
    from quantkit.forecasting.learning import expected, fit, write_calibration
    from quantkit.forecasting.measured import read_measured

    good = [item for item in found if "error" not in item]
    measured = [read_measured(item["memory"], name=item["name"]) for item in good]
    runs = [(item, run) for item, run in zip(good, measured, strict=True) if run is not None]
    for item, run in runs:
        item |= {
            "counted_bytes": run.counted_bytes,
            "measured_bytes": run.measured_bytes,
            "held_bytes": item["memory"]["forecast"]["held_bytes"],
            "forecast_bytes": _training_bytes(item["memory"]["forecast"]),
        }
    if quick:
        return {"as_shipped": summary([item for item, _ in runs], "forecast_bytes")}
    halves = {"fitted": [pair for pair in runs if pair[0]["shape"] in FITTED_ON]}
    halves["others"] = [pair for pair in runs if pair[0]["shape"] not in FITTED_ON]
    constants = {}
    for half, other in (("fitted", "others"), ("others", "fitted")):
        learnt = fit([run for _, run in halves[half]], "cpu", source=f"the benchmark's runs on {half} shapes")
        constants[half] = {name: getattr(learnt, name) for name in CONSTANTS}
        for item, run in halves[other]:
            item["held_out_bytes"] = round(expected(run, learnt))
    everything = fit([run for _, run in runs], "cpu", source=_source(found))
    if calibration is not None:
        write_calibration(calibration, "cpu", everything)
    items = [item for item, _ in runs]
    return {
        "constants": constants | {"all": {key: getattr(everything, key) for key in (*CONSTANTS, "low", "high")}},
        "held_out": summary(items, "held_out_bytes"),
        "held_out_by_shape": {
            shape: summary([item for item in items if item["shape"] == shape], "held_out_bytes")
            for shape in dict.fromkeys(item["shape"] for item in items)
        },
        "as_shipped": summary(items, "forecast_bytes"),
        "merging": merges([item for item, _ in runs], everything),
    }


def summary(items: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Return how far forecasts are from peaks, of all and of what lies above the memory held before the model was loaded."""
    errors = sorted(abs(item[key] / item["measured_bytes"] - 1) for item in items)
    above = sorted(abs(item[key] - item["measured_bytes"]) / (item["measured_bytes"] - item["held_bytes"]) for item in items)
    return {
        "runs": len(errors),
        "median_error": median(errors),
        "within_10_percent": sum(error <= WITHIN for error in errors) / len(errors),
        "largest_error": errors[-1],
        "median_error_above_start": median(above),
        "bias": median(item[key] / item["measured_bytes"] - 1 for item in items),
    }


def merges(items: Sequence[Mapping[str, Any]], constants: Any) -> dict[str, dict[str, int]]:
    """Return forecast and measurement of the stages in which adapters were folded in and judged."""
    from quantkit.forecasting.moments import JUDGING, Moment

    found = {}
    for item in items:
        stages = {stage["stage"]: stage["peak_rss_bytes"] for stage in item["memory"]["stages"]}
        moments = {moment["name"]: Moment(moment["name"], moment["items"]) for moment in item["memory"]["forecast"]["moments"]}
        for name, stage in FOLDING.items():
            if stage in stages and name in moments:
                counted = moments[name].size_bytes + round(constants.cpu_slack * moments[name].passing_bytes)
                expected = constants.process_bytes + counted + (constants.compiled_bytes if name in JUDGING else 0)
                found[f"{item['name']}: {stage}"] = {"measured_bytes": stages[stage], "forecast_bytes": expected}
    return found


def goals_of(result: Mapping[str, Any], *, quick: bool) -> list[Goal]:
    """Return the goals; of the short form only that its runs ended and were forecast."""
    found = result["runs"]
    ended = sum("forecast_bytes" in item for item in found)
    all_of_them = Goal("runs with forecast and measurement", ended, f"all {len(found)}", ended == len(found))
    if quick:
        return [all_of_them]
    held_out = result["held_out"]
    return [
        all_of_them,
        Goal("runs judged by constants of other shapes", held_out["runs"], f"at least {FEWEST}", held_out["runs"] >= FEWEST),
        Goal("median error", held_out["median_error"], f"at most {MEDIAN}", held_out["median_error"] <= MEDIAN),
        Goal(
            "share of runs within 10 %",
            held_out["within_10_percent"],
            f"at least {SHARE}",
            held_out["within_10_percent"] >= SHARE,
        ),
    ]


def show(result: Mapping[str, Any]) -> None:
    """Print the summaries and the worst runs."""
    from quantkit.console import format_bytes, table

    names = ["median_error", "within_10_percent", "largest_error", "median_error_above_start", "bias"]
    groups = {"fitted to other shapes": result.get("held_out"), "as forecast by this machine": result.get("as_shipped")}
    groups |= {f"  {shape}": item for shape, item in result.get("held_out_by_shape", {}).items()}
    rows = [[name, item["runs"], *(f"{item[key]:.1%}" for key in names)] for name, item in groups.items() if item]
    columns = ["", "runs", "median error", "within 10 %", "largest", "median error above the start", "bias"]
    table("Forecast against measured peak of the training stage", columns, rows)
    key = "held_out_bytes" if "held_out" in result else "forecast_bytes"
    judged_runs = [item for item in result["runs"] if key in item]
    worst = sorted(judged_runs, key=lambda item: -abs(item[key] / item["measured_bytes"] - 1))[:WORST]
    table(
        "Worst runs",
        ["run", "forecast", "measured", "error", "counted", "before loading"],
        [
            [
                item["name"],
                format_bytes(item[key]),
                format_bytes(item["measured_bytes"]),
                f"{item[key] / item['measured_bytes'] - 1:+.1%}",
                format_bytes(item["counted_bytes"]),
                format_bytes(item["held_bytes"]),
            ]
            for item in worst
        ],
    )
    lines = [
        [name, format_bytes(item["forecast_bytes"]), format_bytes(item["measured_bytes"])]
        for name, item in result.get("merging", {}).items()
    ]
    if lines:
        table("Folding in", ["run", "forecast", "measured"], lines)


def _training_bytes(forecast: Mapping[str, Any]) -> int:
    """Return the forecast of the training stage, with everything."""
    from quantkit.forecasting.moments import TRAINING

    return max(int(moment["total_bytes"]) for moment in forecast["moments"] if moment["name"] in TRAINING)


def _source(found: Sequence[Mapping[str, Any]]) -> str:
    import platform
    from datetime import UTC, datetime

    shapes = len({item["shape"] for item in found})
    return (
        f"fitted to {len(found)} runs on {shapes} models of 40 to 135 M parameters ({platform.machine()} CPU,"
        f" benchmarks/forecast.py, {datetime.now(UTC).date().isoformat()})"
    )
