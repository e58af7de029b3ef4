"""Does a dry run say what the run would take, and whether that is there, without reading its rows?"""

import json
from typing import Any

import pytest

from quantkit_tools import foresight, outlook

GIB = 1 << 30


def test_a_dry_run_says_what_the_run_would_take_and_what_is_there(settings: list[object], quantkit: Any) -> None:
    code, out, err = quantkit("train", *settings, "--max-length", 128, "--dry-run")
    assert code == 0
    assert "memory expected at the peak (" in out
    assert ") if all rows have 128 tokens: " in out
    assert "are there" in out
    assert "time expected" not in out  # no run is known whose rate it could go at
    assert "suffice" not in err


def test_its_json_form_holds_the_runs_own_forecast_for_the_fullest_rows(
    settings: list[object], quantkit: Any, read_json: Any
) -> None:
    told = read_json("train", *settings, "--max-length", 128, "--dry-run")["forecast"]
    assert told["fits"] is True
    assert told["room_bytes"] > told["peak_bytes"] > told["interval"]["low_bytes"]
    assert told["settings"]["length"] == 128
    assert told["step_s"] is None


def test_where_it_would_not_fit_the_settings_that_do_are_named_and_nothing_is_refused(
    settings: list[object], quantkit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foresight, "room_bytes", lambda *_, **__: 1 << 20)
    code, _, err = quantkit("train", *settings, "--max-length", 128, "--dry-run")
    assert code == 0
    assert "with such rows memory will not suffice, and the run would be refused" in err


def test_a_rate_that_is_known_tells_the_time_of_a_step_and_of_the_run(
    settings: list[object], quantkit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.forecasting.timing import Rate

    monkeypatch.setattr(outlook, "earlier_rate", lambda _: Rate(1e9, "a rate of the test"))
    code, out, _ = quantkit("train", *settings, "--max-length", 128, "--dry-run")
    assert code == 0
    assert "time expected: at most " in out
    assert " a step" in out
    assert ", if all rows are so long (a rate of the test)" in out


def test_a_snapshot_trains_nothing_and_expects_nothing(tiny_model: Any, quantkit: Any) -> None:
    code, out, _ = quantkit("train", "--model-name-or-path", tiny_model, "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["forecast"] is None
