"""What do lm-eval's answers amount to, with all that it takes to judge them?

A metric of lm-eval comes as one number with a standard error. Its values row by row are kept there too; from these come n, a
95 % interval of whatever the task makes of them, and rows that two models can be paired by. The standard error alone would do
for neither.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantkit.console import warn
from quantkit.errors import VerificationError
from quantkit.evaluation.degeneration import constant_rate, ends_in_loop
from quantkit.evaluation.harness.floors import (
    Values,
    each_option,
    first_of,
    gold_option,
    gold_text,
    options,
    predict,
    values_of_texts,
)
from quantkit.evaluation.resampling import interval
from quantkit.evaluation.results import RowResult
from quantkit.evaluation.statistics import Floor, Score, share_score

UNPARSED = "[invalid]"
"""What lm-eval's filters return for a text that gives no answer."""
RESAMPLES = 1000
SLOW = {"bleu": 100, "chrf": 100, "ter": 100}
"""Metrics of whole corpora, with fewer draws, as in lm-eval."""
Count = Callable[[str, str], int]


@dataclass(frozen=True, slots=True)
class Judged:
    """What one task measured: scores (the first is the task's own metric) and rows."""

    scores: dict[str, Score]
    rows: list[RowResult]


def judge(
    task: Any, samples: Sequence[Mapping[str, Any]], reported: Mapping[str, Any], *, seed: int, tokens_in: Count
) -> Judged:
    """Return the scores and rows of one task from the samples that lm-eval logged and the numbers that it reported.

    `tokens_in` counts the tokens of a text after another one, as lm-eval does.

    Raises:
        VerificationError: the rows do not give the number that lm-eval reported.
    """
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    scores: dict[str, Score] = {}
    for name in filters:
        chosen = [sample for sample in samples if sample["filter"] == name]
        generates = task.OUTPUT_TYPE == "generate_until"
        coverage = sum(_answer(sample) is not None for sample in chosen) / len(chosen) if generates else 1.0
        rows = _Rows(task, chosen, predict(task, name, chosen), coverage, seed)
        metrics = list(dict.fromkeys(metric for sample in chosen for metric in sample["metrics"]))
        for metric in metrics:
            label = metric if name == "none" else f"{metric},{name}"
            found = reported.get(f"{metric},{name}")
            if isinstance(found, int | float) and abs(found) < float("inf"):
                scores[label] = rows.score(metric, float(found))
            else:
                warn(f"lm-eval task {task.task_name}: {label} is {found!r}, which is no number; it is not filed")
    if not scores:
        raise VerificationError(f"lm-eval task {task.task_name} reported no number")
    main = next((label for label, score in scores.items() if score.interval == "wilson"), next(iter(scores)))
    scores = {main: scores[main], **scores}
    metric, _, first = main.partition(",")
    of_main = [sample for sample in samples if sample["filter"] == (first or "none")]
    if task.OUTPUT_TYPE == "generate_until":
        scores |= _rates(task, metric, first or "none", of_main)
    return Judged(scores, [_row(task, metric, sample, tokens_in) for sample in of_main])


def _rates(task: Any, metric: str, name: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, Score]:
    """Return how many texts are empty, loop, or could be read, and how often the commonest one is given where wrong."""
    texts = [str(first_of(sample["resps"])) for sample in samples]
    answers = {text: _answer(sample) for text, sample in zip(texts, samples, strict=True)}
    n = len(texts)
    rates = {
        "empty_rate": share_score(sum(not text.strip() for text in texts), n),
        "repetition_rate": share_score(sum(map(ends_in_loop, texts)), n),
        "parsed_rate": share_score(sum(_answer(sample) is not None for sample in samples), n),
    }

    def correct(written: Sequence[str]) -> list[bool]:
        return [values.get(metric) == 1 for values in values_of_texts(task, name, samples, written)]

    try:
        return rates | {"constant_rate": constant_rate(texts, answers.get, correct)}
    except Exception as error:  # rules of a task's own, written for answers of models
        warn(f"lm-eval task {task.task_name}: its own rules fail on a fixed answer, so constant_rate is missing: {error!r}")
        return rates


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a task under one of its filters."""

    task: Any
    samples: Sequence[Mapping[str, Any]]
    floors: Mapping[str, Sequence[Values]]
    coverage: float
    seed: int

    def score(self, metric: str, reported: float) -> Score:
        values = [sample[metric] for sample in self.samples if metric in sample]
        aggregate = _aggregation(self.task, metric)
        found = float(aggregate(values))
        if not abs(found - reported) <= 1e-9 * max(1.0, abs(found)):
            raise VerificationError(
                f"lm-eval task {self.task.task_name}: {metric} is reported as {reported}, its rows give {found}"
            )
        higher = self.task.higher_is_better().get(metric) in (None, True)
        predicted = {name: [row[metric] for row in rows if metric in row] for name, rows in self.floors.items()}
        floors = tuple(Floor(name=name, value=float(aggregate(own))) for name, own in predicted.items() if own)
        coverage = self.coverage * len(values) / len(self.samples)  # rows may lack a metric
        shares = all(isinstance(value, int | float) and value in (0, 1) for value in values)
        if shares and found == sum(values) / len(values):
            score = share_score(int(sum(values)), len(values), coverage=coverage, floors=floors)
            return replace(score, higher_is_better=higher)
        low, high = _bootstrap(values, aggregate, draws=SLOW.get(metric, RESAMPLES), seed=self.seed)
        return Score(
            value=found,
            n=len(values),
            low=min(low, found),
            high=max(high, found),
            interval="bootstrap",
            coverage=coverage,
            floors=floors,
            higher_is_better=higher,
        )


def _aggregation(task: Any, metric: str) -> Callable[[Sequence[Any]], Any]:
    """Return the task's own way from the values of rows to the number; the mean where it names none, as in lm-eval."""
    from lm_eval.api.metrics import mean

    known: Mapping[str, Any] = task.aggregation()
    chosen: Callable[[Sequence[Any]], Any] = known.get(metric, mean)
    return chosen


def _bootstrap(
    values: Sequence[Any], aggregate: Callable[[Sequence[Any]], Any], *, draws: int, seed: int
) -> tuple[float, float]:
    """Return the 95 % interval of any aggregation over rows drawn with replacement."""
    import numpy as np

    chance, n = np.random.default_rng(seed), len(values)
    found = [float(aggregate([values[index] for index in chance.integers(0, n, size=n)])) for _ in range(draws)]
    return interval(np.asarray(found), n)


def _row(task: Any, metric: str, sample: Mapping[str, Any], tokens_in: Count) -> RowResult:
    value = sample.get(metric)
    number = float(value) if isinstance(value, int | float) else None
    kind, gold, answer, text, nll, tokens = task.OUTPUT_TYPE, gold_text(sample["target"]), None, "", None, 0
    if kind == "multiple_choice":
        texts = [text.strip() for text in options(task, sample)]
        chosen = _chosen(task, metric, sample)
        right = gold_option(each_option(task, sample))
        answer = texts[chosen]
        if right is not None:
            gold, nll = texts[right], -float(sample["filtered_resps"][right][0])
            tokens = tokens_in(*sample["arguments"][right])
    elif kind == "generate_until":
        answer, text = _answer(sample), str(first_of(sample["resps"]))
    elif kind == "loglikelihood":
        nll, tokens = -float(sample["filtered_resps"][0][0]), tokens_in(*sample["arguments"][0])
        answer = gold if sample["filtered_resps"][0][1] else None
    elif kind == "loglikelihood_rolling":
        nll, tokens = -float(sample["filtered_resps"][0]), tokens_in("", *sample["arguments"][0])
    return RowResult(
        row=int(sample["doc_id"]),
        gold=gold,
        answer=answer,
        correct=number == 1.0,
        text=text,
        value=None if number in (0.0, 1.0) else number,
        nll=nll,
        nll_tokens=tokens,
    )


def _chosen(task: Any, metric: str, sample: Mapping[str, Any]) -> int:
    """Return the option a row's metric judged: likeliest, or likeliest by characters or bytes."""
    texts = options(task, sample)
    choices = task.doc_to_choice(sample["doc"]) if task.get_config("doc_to_choice") is not None else texts
    sizes = {"acc_norm": [len(text) for text in choices], "acc_bytes": [len(text.encode()) for text in choices]}
    lengths = sizes.get(metric, [1] * len(texts))
    likelihoods = [float(answer[0]) for answer in sample["filtered_resps"][: len(texts)]]
    return max(range(len(texts)), key=lambda at: likelihoods[at] / max(lengths[at], 1))


def _answer(sample: Mapping[str, Any]) -> str | None:
    """Return what the filters made of a text; None where they found no answer in it."""
    found = first_of(sample["filtered_resps"])
    text = str(found).strip()
    return None if text in ("", UNPARSED) else text
