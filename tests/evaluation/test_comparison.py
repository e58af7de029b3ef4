"""Two models on the same rows: better is called better, what is not shown is called that, and what differs is refused."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from quantkit.errors import UsageError
from quantkit.evaluation.comparison import Comparison, best_of, compare, compare_all, holm
from quantkit.evaluation.measures import exact_p, newcombe_interval, sign_flip_p
from quantkit.evaluation.results import Cost, RowResult, TaskResult
from quantkit.evaluation.statistics import Floor, mean_score, ratio_score, share_score

COST = Cost(generated_tokens=9, generation_s=1.0, tokens_per_s=9.0, perplexity_s=1.0, peak_rss_bytes=1)
SETTINGS = {"batch_size": 16, "max_new_tokens": 64, "decoding": "greedy", "system_prompt": None, "dtype": "bfloat16"}


def result(right: Sequence[bool], *, floor: float = 0.0, more: dict[str, Any] | None = None, **change: Any) -> TaskResult:
    """Return a result whose rows are right or wrong as given; `more` holds lists of further row values."""
    n = len(right)
    columns = more or {}
    rows = [
        RowResult(
            row=index + 1,
            gold="g",
            answer="a",
            correct=ok,
            stopped=True,
            **{key: column[index] for key, column in columns.items()},
        )
        for index, ok in enumerate(right)
    ]
    rates = {name: share_score(0, n) for name in ("empty_rate", "repetition_rate")} | {"stop_rate": share_score(n, n)}
    scores = {"exact_match": share_score(sum(right), n, floors=[Floor(name="majority", value=floor)]), **rates}
    if "value" in columns:
        scores["f1"] = mean_score(columns["value"], seed=0, coverage=1.0)
    made = TaskResult(
        task="sums",
        kind="numeric",
        metric="exact_match",
        source="sums.jsonl",
        data_fingerprint="ab" * 32,
        n=n,
        seed=0,
        settings=dict(SETTINGS),
        scores=scores,
        cost=COST,
        rows=rows,
    )
    return replace(made, **change)


def first_of(a: TaskResult, b: TaskResult) -> Comparison:
    return compare(("A", a), ("B", b))[0]


def test_mcnemar_looks_only_at_rows_where_one_is_right() -> None:
    found = first_of(result([True] * 40 + [False] * 20), result([True] * 30 + [False] * 30))
    assert (found.measure, found.test, found.only_first, found.only_second, found.n) == (
        "exact_match",
        "exact McNemar",
        10,
        0,
        60,
    )
    assert found.difference == pytest.approx(100 / 6)
    assert found.p_value == pytest.approx(2 / 2**10)
    assert (found.winner, found.verdict) == ("first", "A is better")


def test_exact_p_is_the_binomials_sum() -> None:
    assert exact_p(1, 8) == pytest.approx(2 * (1 + 9) / 2**9)
    assert exact_p(10, 3) == pytest.approx(2 * (1 + 13 + 78 + 286) / 2**13)


def test_newcombes_interval_equals_the_published_one() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 2635, table II: cells 20, 12, 2, 16
    assert [round(bound, 4) for bound in newcombe_interval(20, 12, 2, 50)] == [0.0562, 0.3292]
    assert newcombe_interval(0, 60, 0, 60)[1] == 1.0


def test_intervals_of_a_difference_hold_it_about_as_often_as_they_say() -> None:
    chance = random.Random(0)
    held = 0
    for _ in range(400):
        draws = [(chance.random(), chance.random()) for _ in range(60)]
        pairs = [(x < 0.6, x < 0.45 or y < 0.1) for x, y in draws]  # 0.60 and 0.45 + 0.55 x 0.1 = 0.505
        low, high = newcombe_interval(
            sum(a and b for a, b in pairs), sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs), 60
        )
        held += low <= 0.095 <= high
    assert 0.92 <= held / 400 <= 0.99


def test_two_equal_models_are_seldom_told_apart() -> None:
    chance = random.Random(2)
    told = 0
    for _ in range(300):
        rows = [(chance.random() < 0.5, chance.random() < 0.5) for _ in range(40)]
        told += first_of(result([a for a, _ in rows]), result([b for _, b in rows])).winner != "none"
    assert told / 300 <= 0.05


def test_no_difference_names_the_smallest_that_could_have_been_shown() -> None:
    found = first_of(result([True] * 33 + [False] * 27), result([True] * 30 + [False] * 30))
    assert found.verdict == "no difference shown at n = 60; smallest it could show about 10 points"
    few = first_of(result([True] * 5), result([False] * 5))
    assert (few.winner, few.verdict) == ("none", "no difference shown; n = 5 can show none")


def test_f1_is_compared_by_paired_rows() -> None:
    chance = random.Random(1)
    hard = [chance.random() * 0.6 for _ in range(60)]
    better = [min(1.0, value + 0.1) for value in hard]
    alike = [True] * 60
    found = {
        item.measure: item
        for item in compare(("A", result(alike, more={"value": better})), ("B", result(alike, more={"value": hard})))
    }
    assert found["f1"].difference == pytest.approx(10.0)
    assert found["f1"].winner == "first"  # though the two intervals overlap widely
    assert found["f1"].test == "sign flips"
    assert found["exact_match"].winner == "none"


def test_perplexity_is_compared_in_nats_per_token_and_less_is_better() -> None:
    tokens = [10, 20, 30] * 10
    one = result([True] * 30, more={"nll": [2.0 * n for n in tokens], "nll_tokens": tokens})
    two = result([True] * 30, more={"nll": [2.0 * n + (0.1 if n > 10 else -0.1) * n for n in tokens], "nll_tokens": tokens})
    found = compare(("A", one), ("B", two))[1]
    assert (found.measure, found.unit, found.winner) == ("perplexity_response", "nats/token", "first")
    assert found.difference == pytest.approx(-0.1 * (20 + 30 - 10) / 60)
    assert found.low <= found.difference <= found.high < 0


def test_perplexities_of_two_tokenizers_are_not_compared() -> None:
    one = result([True] * 8, more={"nll": [1.0] * 8, "nll_tokens": [3] * 8})
    two = result([True] * 8, more={"nll": [1.0] * 8, "nll_tokens": [4] * 8})
    (found,) = compare(("A", one), ("B", two))
    assert found.measure == "exact_match"
    assert found.caveats == ["their tokenizers cut the rows differently, so perplexities are not compared"]


def test_a_mean_that_only_some_rows_have_is_not_compared() -> None:
    values: list[float | None] = [0.5] * 7
    one = result([True] * 8, more={"value": [0.5] * 8})
    two = replace(one, rows=[replace(row, value=value) for row, value in zip(one.rows, [*values, None], strict=True)])
    assert [item.measure for item in compare(("A", one), ("B", two))] == ["exact_match"]


def test_divergences_are_compared_in_nats() -> None:
    one = result([True] * 12, more={"kl": [0.01 + 0.001 * n for n in range(12)]})
    two = result([True] * 12, more={"kl": [0.05 + 0.001 * n for n in range(12)]})
    found = compare(("A", one), ("B", two))[1]
    assert (found.measure, found.unit, found.winner) == ("kl_mean", "nats", "first")
    (right,) = compare(("A", one), ("B", replace(two, settings=SETTINGS | {"reference": "another model"})))
    assert right.caveats == ["they diverge from different reference models, so divergences are not compared"]


def test_every_difference_is_that_of_the_two_scores() -> None:
    chance = random.Random(3)
    tokens = [chance.randint(3, 40) for _ in range(30)]
    made = []
    for _ in range(2):
        kl = [chance.random() for _ in tokens]
        nll = [count * (1.0 + chance.random()) for count in tokens]
        value = [chance.random() for _ in tokens]
        one = result([chance.random() < 0.5 for _ in tokens], more={"kl": kl, "nll": nll, "nll_tokens": tokens, "value": value})
        pairs = [(each * count, float(count)) for each, count in zip(kl, tokens, strict=True)]
        told = {
            "kl_mean": ratio_score(pairs, seed=0, coverage=1.0, higher_is_better=False),
            "perplexity_response": ratio_score(
                list(zip(nll, map(float, tokens), strict=True)), seed=0, coverage=1.0, higher_is_better=False
            ),  # its logarithm
        }
        made.append(replace(one, scores=one.scores | told))
    found = compare(("A", made[0]), ("B", made[1]))
    assert [item.measure for item in found] == ["exact_match", "f1", "kl_mean", "perplexity_response"]
    for item in found:
        scale = 100 if item.unit == "points" else 1
        one, two = (each.scores[item.measure].value for each in made)
        assert item.difference == pytest.approx(scale * (one - two))


def test_equal_models_are_called_equal() -> None:
    one = result([True] * 12, more={"value": [0.5, 1.0] * 6})
    found = {item.measure: item for item in compare(("A", one), ("B", one))}
    assert found["f1"].verdict == "equal on all 12 rows"
    assert found["f1"].p_value == 1.0


def test_who_is_marked_never_wins() -> None:
    good, bad = result([True] * 40 + [False] * 20, floor=0.6), result([False] * 60, floor=0.6)
    found = first_of(good, bad)
    assert found.is_real
    assert (found.winner, found.verdict) == ("none", "no winner: A is marked FLOOR")
    assert first_of(bad, good).winner == "none"
    looping = replace(good, scores=good.scores | {"exact_match": share_score(40, 60), "repetition_rate": share_score(60, 60)})
    assert first_of(looping, bad).verdict == "no winner: A is marked LOOPS"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data_fingerprint": "cd" * 32}, "saw different data"),
        ({"kind": "choice"}, "were judged differently"),
        ({"settings": SETTINGS | {"max_new_tokens": 512}}, "ran with different settings: max_new_tokens is 64 and 512"),
        ({"settings": SETTINGS | {"shots": 5}}, "ran with different settings: shots is None and 5"),
    ],
)
def test_answers_to_other_questions_are_not_compared(change: dict[str, Any], said: str) -> None:
    one = result([True] * 8)
    with pytest.raises(UsageError, match=f"A and B cannot be compared: they {said}"):
        compare(("A", one), ("B", replace(one, **change)))


def test_what_belongs_to_a_model_is_told_and_what_does_not_matter_is_not() -> None:
    one = result([True] * 8)
    other = replace(
        one, settings=SETTINGS | {"system_prompt": "Add up.", "dtype": "float32", "batch_size": 1, "device": "cuda:0"}
    )
    assert first_of(one, other).caveats == [
        "they computed in different data types",
        "each was asked with its own system prompt",
    ]


def test_rows_are_matched_by_number_and_must_be_the_same() -> None:
    one = result([True, False, True, True])
    assert first_of(one, replace(one, rows=one.rows[::-1])).difference == 0
    others = replace(one, rows=[replace(row, row=row.row + 1) for row in one.rows])
    with pytest.raises(UsageError, match=r"different rows: 1 only of A; 5 only of B"):
        compare(("A", one), ("B", others))
    with pytest.raises(UsageError, match="row 1 of sums stands twice"):
        compare(("A", one), ("B", replace(one, rows=[one.rows[0], *one.rows[:3]])))
    with pytest.raises(UsageError, match="3 of 4 rows of sums are in its results"):
        compare(("A", one), ("B", replace(one, rows=one.rows[:3])))
    renamed = replace(one, rows=[replace(one.rows[0], gold="h"), *one.rows[1:]])
    with pytest.raises(UsageError, match="judged by different references: row 1, 'g' and 'h'"):
        compare(("A", one), ("B", renamed))


def test_several_are_compared_with_the_best_unmarked_and_corrected_for_all_pairs() -> None:
    models = {"A": 50, "B": 40, "C": 44, "D": 55}
    made = [(name, result([True] * right + [False] * (60 - right))) for name, right in models.items()]
    marked = [*made[:3], ("D", replace(made[3][1], scores=made[3][1].scores | {"repetition_rate": share_score(60, 60)}))]
    assert best_of(marked) == "A"
    found, refused = compare_all(marked)
    assert refused == []
    assert [(item.first, item.second, item.comparisons) for item in found] == [("B", "A", 6), ("C", "A", 6), ("D", "A", 6)]
    by_name = {item.first: item for item in found}
    assert by_name["B"].p_value == pytest.approx(6 * by_name["B"].p_single)
    assert by_name["C"].p_value == pytest.approx(5 * by_name["C"].p_single)
    assert by_name["B"].winner == "second"
    assert (by_name["C"].p_single < 0.05, by_name["C"].winner) == (True, "none")
    named, _ = compare_all(marked, baseline="B")
    assert [(item.second, item.comparisons) for item in named] == [("B", 3)] * 3


def test_one_that_cannot_be_compared_does_not_stop_the_others() -> None:
    one = result([True] * 8)
    found, refused = compare_all([("A", one), ("B", one), ("C", replace(one, data_fingerprint="00" * 32))])
    assert [item.first for item in found] == ["B"]
    assert "C and A cannot be compared" in refused[0]


def test_models_need_names_apart_and_a_baseline_that_is_there() -> None:
    one = result([True] * 8)
    with pytest.raises(UsageError, match="two results of sums are called 'A'"):
        compare_all([("A", one), ("A", one)])
    with pytest.raises(UsageError, match="no result of sums is called 'X'; there are A, B"):
        compare_all([("A", one), ("B", one)], baseline="X")
    assert compare_all([("A", one)]) == ([], [])


def test_holm_never_orders_p_values_anew() -> None:
    one = first_of(result([True] * 40 + [False] * 20), result([True] * 30 + [False] * 30))
    single = [0.04, 0.01, 0.03]
    assert [item.p_value for item in holm([replace(one, p_single=p) for p in single], 3)] == pytest.approx([0.06, 0.03, 0.06])


def test_sign_flips_are_exact_enough_and_repeat() -> None:
    assert sign_flip_p([1.0] * 6, seed=0) == pytest.approx(2 / 2**6, abs=0.004)
    assert sign_flip_p([0.3, -0.1, 0.2], seed=5) == sign_flip_p([0.3, -0.1, 0.2], seed=5)


def test_a_comparison_is_plain_data_with_its_verdict() -> None:
    data = first_of(result([True] * 40 + [False] * 20), result([True] * 30 + [False] * 30)).to_dict()
    assert (data["winner"], data["verdict"], data["unit"]) == ("first", "A is better", "points")
