"""Does a dry run say what the run would take, and whether that is there, over its rows where they are here?"""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantkit_registry.records import read_record
from quantkit_tools import foresight, outlook

GIB = 1 << 30


@pytest.fixture
def at_hand(request: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether rows lie here; else all are taken for those of the hub."""
    here = bool(getattr(request, "param", False))
    if not here:
        monkeypatch.setattr(outlook, "parse_dataset", lambda _: SimpleNamespace(path=None))
    return here


def test_a_dry_run_counts_the_runs_own_rows_where_they_are_here(settings: list[object], quantkit: Any, read_json: Any) -> None:
    code, out, err = quantkit("train", *settings, "--dry-run")
    assert code == 0
    assert "memory expected at the peak (" in out
    assert ") over 24 rows: " in out
    assert "are there" in out
    assert "time expected" not in out  # no run is known whose rate it could go at
    assert "suffice" not in err
    told = read_json("train", *settings, "--dry-run")["forecast"]
    record = read_record(Path(read_json("train", *settings)["artifact"])).memory["forecast"]
    assert told["rows"] == 24
    assert told["settings"] == record["settings"]
    assert told["settings"]["length"] < 1024
    assert told["settings"]["steps"] == 2


def test_rows_that_are_not_here_are_taken_to_be_as_long_as_settings_let_them_be(
    at_hand: bool, settings: list[object], quantkit: Any, read_json: Any
) -> None:
    code, out, _ = quantkit("train", *settings, "--max-length", 128, "--dry-run")
    assert code == 0
    assert ") if all rows have 128 tokens: " in out
    told = read_json("train", *settings, "--max-length", 128, "--dry-run")["forecast"]
    assert told["fits"] is True
    assert told["rows"] is None
    assert told["room_bytes"] > told["peak_bytes"] > told["interval"]["low_bytes"]
    assert told["settings"]["length"] == 128
    assert told["step_s"] is None


def test_rows_that_the_run_would_refuse_are_said_to_be_refused(settings: list[object], quantkit: Any, tmp_path: Path) -> None:
    silent = tmp_path / "silent.jsonl"
    silent.write_text(json.dumps({"prompt": "1 + 1?", "completion": ""}) + "\n")
    code, out, err = quantkit("train", *settings, "--dry-run", "--eval-dataset-name", silent)
    assert code == 0
    assert f"the run would be refused: {silent}" in err
    assert "if all rows have 1,024 tokens" in out


@pytest.mark.parametrize("at_hand", [True, False], indirect=True)
def test_where_it_would_not_fit_the_settings_that_do_are_named_and_nothing_is_refused(
    at_hand: bool, settings: list[object], quantkit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foresight, "room_bytes", lambda *_, **__: 1 << 20)
    code, _, err = quantkit("train", *settings, "--max-length", 128, "--dry-run")
    assert code == 0
    such = "memory" if at_hand else "with such rows memory"
    assert f"warning: {such} will not suffice, and the run would be refused" in err


@pytest.mark.parametrize("at_hand", [True, False], indirect=True)
def test_a_rate_that_is_known_tells_the_time_of_a_step_and_of_the_run(
    at_hand: bool, settings: list[object], quantkit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.forecasting.timing import Rate

    monkeypatch.setattr(outlook.EarlierRuns, "rate", lambda *_: Rate(1e9, "a rate of the test"))
    code, out, _ = quantkit("train", *settings, "--max-length", 128, "--dry-run")
    assert code == 0
    most, rows = ("", "") if at_hand else ("at most ", ", if all rows are so long")
    assert re.search(rf"time expected: {most}\S+ \S+ a step, \S+ \S+ for 2 steps{rows} \(a rate of the test\)", out), out


def test_a_snapshot_trains_nothing_and_expects_nothing(tiny_model: Any, quantkit: Any) -> None:
    code, out, _ = quantkit("train", "--model-name-or-path", tiny_model, "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["forecast"] is None
