"""Does the benchmark of forecasts run, cover what it says, and judge every run by constants of other models?"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forecast_cases import FITTED_ON, SHAPES, cases
from forecast_judge import FEWEST, goals_of, judged, summary
from forecast_worker import LEARNT_SHARE, library_pages, map_pages, write_rows

from quantkit.forecasting.constants import CONSTANTS
from quantkit.forecasting.families import known_shape

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MB = 10**6


def item(shape: str, counted: int, *, name: str = "", beyond: float = 1.0) -> dict[str, Any]:
    """Return a run whose peak is 500 MB and so many times what was counted (in MB); 700 MB were forecast."""
    measured = round((500 + counted * beyond) * MB)
    moments = [{"name": "loss", "items": {"activations": counted * MB}, "total_bytes": 700 * MB}]
    settings = {"device": "cpu", "length": 64, "mean_length": 64}
    forecast = {"settings": settings, "moments": moments, "held_bytes": 400 * MB}
    stages = [{"stage": "train", "duration_s": 1.0, "peak_rss_bytes": measured}]
    return {"name": name or f"{shape} {counted}", "shape": shape, "memory": {"stages": stages, "forecast": forecast}}


def many(**how: Any) -> list[dict[str, Any]]:
    return [item(shape, counted, **how) for shape in SHAPES for counted in range(100, 1200, 100)]


def held(result: dict[str, Any]) -> dict[str, bool]:
    return {goal.name: goal.holds for goal in goals_of(result, quick=False)}


def test_the_quick_form_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "forecast.py"), "--quick", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [run["name"] for run in found["runs"]] == ["llama-40M 2x64", "llama-40M QLORA 2x64"]
    assert all(run["forecast_bytes"] > run["counted_bytes"] > 0 for run in found["runs"])
    assert all(run["measured_bytes"] > run["held_bytes"] > 0 for run in found["runs"])


def test_four_shapes_that_memory_depends_on_are_tried_with_methods_adapters_lengths_and_recomputing() -> None:
    all_of_them = [case for shape in SHAPES for case in cases(shape)]
    assert len(all_of_them) >= FEWEST
    assert len({case.name for case in all_of_them}) == len(all_of_them)
    for setting, least in (("quant_method", 3), ("peft_config", 3), ("recompute", 2), ("compute_dtype", 1)):
        assert len({case.settings.get(setting) for case in all_of_them} - {None}) >= least
    assert 0 < len(FITTED_ON) < len(SHAPES)
    sizes = {name: known_shape(config, name) for name, config in SHAPES.items()}
    assert all(shape is not None and f"-{shape.parameters / 1e6:.0f}M" in name for name, shape in sizes.items())


def test_rows_have_exactly_the_tokens_that_are_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from quantkit.data import prepare_data

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    write_rows(tmp_path / "rows.jsonl", tokenizer, length=64, rows=3, seed=1)
    data = prepare_data(dataset=str(tmp_path / "rows.jsonl"), tokenizer=tokenizer, max_length=64)
    assert {len(row.input_ids) for row in data.train} == {64}
    assert {row.supervised for row in data.train} == {int(64 * LEARNT_SHARE) + 1}  # and the end token
    write_rows(tmp_path / "mixed.jsonl", tokenizer, length=64, rows=9, seed=1, mixed=True)
    mixed = prepare_data(dataset=str(tmp_path / "mixed.jsonl"), tokenizer=tokenizer, max_length=64)
    assert len({len(row.input_ids) for row in mixed.train}) > 3
    assert max(len(row.input_ids) for row in mixed.train) <= 64


def test_every_run_is_judged_by_constants_of_other_shapes() -> None:
    """On two shapes twice what is counted is held; constants of their own would hide that."""
    runs = [item(shape, counted, beyond=1.0 if shape in FITTED_ON else 2.0) for shape in SHAPES for counted in (100, 500, 900)]
    result = judged(runs, quick=False, calibration=None)
    assert result["held_out"]["median_error"] > 0.1
    fitted, others = (result["constants"][half]["cpu_slack"] for half in ("fitted", "others"))
    assert fitted < CONSTANTS.cpu_slack < others


def test_goals_hold_where_constants_carry_over_and_are_lost_where_a_run_failed(tmp_path: Path) -> None:
    from quantkit.forecasting.learning import read_calibration

    runs = many()
    result = {"runs": runs} | judged(runs, quick=False, calibration=tmp_path / "made.json")
    assert all(held(result).values())
    assert result["as_shipped"]["median_error"] > 0.05  # 700 MB whatever was counted
    made = read_calibration(tmp_path / "made.json")["cpu"]
    assert made.runs == len(runs)
    assert made.process_bytes == pytest.approx(500 * MB, rel=0.2)
    failed = [*many(), {"name": "x", "shape": "phi3-72M", "error": "out of memory"}]
    result = {"runs": failed} | judged(failed, quick=False, calibration=None)
    assert held(result)["runs with forecast and measurement"] is False
    few = many()[::3]
    assert held({"runs": few} | judged(few, quick=False, calibration=None))["runs judged by constants of other shapes"] is False


def test_what_lies_above_the_memory_before_loading_is_judged_too() -> None:
    run = {"measured_bytes": 500, "held_bytes": 400, "forecast_bytes": 550}
    found = summary([run], "forecast_bytes")
    assert found["median_error"] == pytest.approx(0.1)
    assert found["median_error_above_start"] == pytest.approx(0.5)


def test_pages_of_libraries_are_found_and_mapped() -> None:
    pages = library_pages()
    assert sum(length for _, length in pages) > MB
    map_pages(pages[:5])
