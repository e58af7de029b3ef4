"""Intervals against published values; scores that cannot be built without what it takes to judge them."""

import random
from collections.abc import Callable
from dataclasses import fields

import pytest

from quantkit.errors import UsageError
from quantkit.evaluation.statistics import (
    Floor,
    Score,
    bootstrap_ratio,
    mean_score,
    quantile_score,
    ratio_score,
    share_score,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_intervals_equal_published_ones(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_a_share_of_nothing_is_refused(successes: int, n: int) -> None:
    with pytest.raises(UsageError, match=f"{successes} of {n} is no share"):
        wilson_interval(successes, n)


def test_a_score_has_no_default_for_n_interval_coverage_or_floors() -> None:
    required = {"value", "n", "low", "high", "interval", "coverage", "floors"}
    complete = {"value": 0.5, "n": 2, "low": 0.1, "high": 0.9, "interval": "wilson", "coverage": 1.0, "floors": ()}
    assert required <= {item.name for item in fields(Score)}
    for name in required:
        with pytest.raises(TypeError, match=name):
            Score(**{key: value for key, value in complete.items() if key != name})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n": 0}, "score.n is 0; a score needs at least one row"),
        ({"coverage": 1.5}, "score.coverage is 1.5; it must be between 0 and 1"),
        ({"low": 0.6}, r"score.value 0.5 lies outside its interval \[0.6, 0.9\]"),
        ({"value": float("nan")}, "lies outside its interval"),
    ],
)
def test_a_score_that_contradicts_itself_is_refused(change: dict[str, float], said: str) -> None:
    complete = {"value": 0.5, "n": 2, "low": 0.1, "high": 0.9, "interval": "wilson", "coverage": 1.0, "floors": ()}
    with pytest.raises(UsageError, match=said):
        Score(**(complete | change))  # type: ignore[arg-type]


def test_a_score_is_marked_when_its_best_floor_lies_in_the_interval() -> None:
    floors = [Floor(name="empty", value=0.0), Floor(name="sum", value=0.4)]
    good, unsure = share_score(40, 60, floors=floors), share_score(30, 60, floors=floors)
    assert good.best_floor == floors[1]
    assert not good.is_floor
    assert unsure.value > 0.4
    assert unsure.is_floor


def test_where_lower_is_better_the_lowest_floor_is_the_one_to_beat() -> None:
    floors = (Floor(name="uniform", value=512.0), Floor(name="unigram", value=40.0))
    common = {"n": 9, "interval": "bootstrap", "coverage": 1.0, "floors": floors, "higher_is_better": False}
    assert not Score(value=5.0, low=4.0, high=6.0, **common).is_floor  # type: ignore[arg-type]
    marked = Score(value=39.0, low=35.0, high=44.0, **common)  # type: ignore[arg-type]
    assert marked.is_floor
    assert marked.best_floor == floors[1]


def test_a_score_without_floors_is_never_marked() -> None:
    assert share_score(0, 5).best_floor is None
    assert not share_score(0, 5).is_floor


def test_scores_survive_json() -> None:
    score = share_score(3, 5, coverage=0.8, floors=[Floor(name="sum", value=0.7)])
    assert score.to_dict()["is_floor"] is True
    assert Score.from_dict(score.to_dict()) == score


def test_a_score_without_coverage_cannot_be_read() -> None:
    data = share_score(3, 5).to_dict()
    del data["coverage"]
    with pytest.raises(UsageError, match=r"score is incomplete: .*coverage"):
        Score.from_dict(data)


def test_the_bootstrap_holds_the_ratio_and_repeats_for_a_seed() -> None:
    pairs = [(float(index % 7), 2.0) for index in range(50)]
    low, high = bootstrap_ratio(pairs, seed=3)
    assert (low, high) == bootstrap_ratio(pairs, seed=3)
    assert low < sum(pair[0] for pair in pairs) / 100 < high
    assert bootstrap_ratio([(1.0, 2.0)], seed=0) == (0.5, 0.5)


def test_the_mean_of_a_few_equal_values_is_not_certain() -> None:
    five = mean_score([1.0] * 5, seed=0, coverage=0.1, floors=[Floor(name="empty", value=0.6)])
    assert (five.value, five.interval, five.is_floor) == (1.0, "wilson", True)
    assert five.low == pytest.approx(0.5655, abs=1e-4)
    assert mean_score([0.25, 0.5] * 3, seed=0, coverage=1.0).interval == "bootstrap"


@pytest.mark.parametrize(("n", "least"), [(6, 0.90), (40, 0.93)])
def test_95_percent_intervals_of_a_mean_hold_it_about_as_often(n: int, least: float) -> None:
    chance = random.Random(1)
    held = 0
    for seed in range(200):
        score = mean_score([chance.gauss(2.0, 1.0) for _ in range(n)], seed=seed, coverage=1.0)
        held += score.low <= 2.0 <= score.high
    assert least <= held / 200 <= 0.99


def test_a_ratio_weighs_rows_by_their_second_and_leaves_out_those_without() -> None:
    score = ratio_score([(3.0, 2.0), (4.0, 1.0), (9.0, 0.0)], seed=0, coverage=2 / 3, higher_is_better=False)
    assert (score.value, score.n, score.coverage) == (pytest.approx(7 / 3), 2, 2 / 3)
    assert score.low <= score.value <= score.high


def test_a_quantile_resamples_whole_rows() -> None:
    alike = [[float(row)] * 50 for row in range(20)]
    score = quantile_score(alike, 0.5, seed=0, coverage=1.0)
    assert (score.value, score.n) == (9.0, 20)
    singly = quantile_score([[value] for row in alike for value in row], 0.5, seed=0, coverage=1.0)
    assert score.high - score.low > 3 * (singly.high - singly.low)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: mean_score([], seed=0, coverage=1.0), "mean of no rows; at least one is needed"),
        (lambda: mean_score([1.0, float("nan")], seed=0, coverage=1.0), "mean: value 1 is nan; a row without a finite value"),
        (lambda: ratio_score([(1.0, 0.0)], seed=0, coverage=1.0), "ratio of 1 rows: every weight is 0"),
        (lambda: quantile_score([[1.0]], 1.0, seed=0, coverage=1.0), "quantile 1.0; it must lie between 0 and 1"),
        (lambda: quantile_score([[]], 0.5, seed=0, coverage=1.0), "quantile of no rows"),
    ],
)
def test_a_mean_of_nothing_is_no_number(call: Callable[[], Score], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        call()


def test_a_mean_cannot_be_had_without_its_coverage() -> None:
    for make in (mean_score, ratio_score):
        with pytest.raises(TypeError, match="coverage"):
            make([(1.0, 1.0)], seed=0)  # type: ignore[call-arg, operator]
