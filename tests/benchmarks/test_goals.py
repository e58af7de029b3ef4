"""Is a difference called one only when it is, and does a lost goal reach the shell?"""

import json
from pathlib import Path

import pytest
from goals import Goal, finish, interval, paired, signed


def test_the_same_rows_show_no_difference():
    rows = [(float(index), 2) for index in range(1, 9)]
    found = paired(rows, rows, seed=0)
    assert (found["value"], found["low"], found["high"]) == (0.0, 0.0, 0.0)
    assert found["verdict"] == "no difference shown"


def test_a_difference_that_every_row_shows_is_called_one():
    rows = [(float(index), 2) for index in range(1, 9)]
    lower = [(nll - 0.5, tokens) for nll, tokens in rows]
    assert paired(lower, rows, seed=0)["verdict"] == "lower"
    assert paired(rows, lower, seed=0)["verdict"] == "higher"
    assert signed(paired(lower, rows, seed=0)) == "-0.2500 (-0.2500 to -0.2500): lower"


def test_rows_that_disagree_show_no_difference():
    one = [(1.0, 1), (3.0, 1)] * 4
    other = [(3.0, 1), (1.1, 1)] * 4
    assert paired(one, other, seed=0)["verdict"] == "no difference shown"


def test_an_interval_holds_its_value():
    found = interval([1.0, 2.0, 3.0, 4.0], lambda rows: sum(rows) / len(rows), seed=1)
    assert found["low"] <= found["value"] <= found["high"]


@pytest.mark.parametrize(("holds", "code"), [(True, 0), (False, 3)])
def test_goals_stand_in_the_result_and_decide_the_exit_code(holds: bool, code: int, tmp_path: Path, capsys):
    goal = Goal("loss", 0.5, "at most 0.6", holds)
    assert finish("example", {"setting": 1}, [goal], str(tmp_path / "found.json")) == code
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["goals"] == [{"name": "loss", "value": 0.5, "goal": "at most 0.6", "holds": holds}]
    assert ("LOST" in capsys.readouterr().out) is not holds


def test_without_a_file_the_result_is_one_object_on_stdout(capsys):
    from quantkit import console

    console.use_stderr()
    try:
        finish("example", {}, [], None)
    finally:
        console.use_stdout()
    assert json.loads(capsys.readouterr().out) == {"benchmark": "example", "goals": []}
