"""What do lm-eval's answers amount to, with all that it takes to judge them?

A metric of lm-eval comes as one number with a standard error. Its values row by row are kept there too; from these come n, a
95 % interval, and what predictors that understand nothing get by the task's own rules: the first option, the most frequent
one, the longest, an empty text, the question again. The floors go through the same functions as the model's answers, so a
task may define its metrics as it likes.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantkit.console import warn
from quantkit.errors import VerificationError
from quantkit.evaluation.results import RowResult
from quantkit.evaluation.statistics import Floor, Score, share_score

UNLIKELY = -100.0
"""Log-likelihood of the options that a predictor does not choose."""
UNPARSED = "[invalid]"
"""What lm-eval's filters return for a text that gives no answer."""
RESAMPLES = 1000
SLOW = {"bleu": 100, "chrf": 100, "ter": 100}
"""Metrics of whole corpora, with fewer draws, as in lm-eval."""
Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Judged:
    """What one task measured: scores (the first is the task's own metric) and rows."""

    scores: dict[str, Score]
    rows: list[RowResult]


def judge(task: Any, samples: Sequence[Mapping[str, Any]], reported: Mapping[str, Any], *, seed: int) -> Judged:
    """Return the scores and rows of one task from the samples that lm-eval logged and the numbers that it reported.

    Raises:
        VerificationError: the rows do not give the number that lm-eval reported.
    """
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    scores: dict[str, Score] = {}
    for name in filters:
        chosen = [sample for sample in samples if sample["filter"] == name]
        generates = task.OUTPUT_TYPE == "generate_until"
        coverage = sum(_answer(sample) is not None for sample in chosen) / len(chosen) if generates else 1.0
        rows = _Rows(task, chosen, _predict(task, name, chosen), coverage, seed)
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
    first = main.partition(",")[2] or "none"
    of_main = [sample for sample in samples if sample["filter"] == first]
    if task.OUTPUT_TYPE == "generate_until":
        texts = [str(_first(sample["resps"])).strip() for sample in of_main]
        scores["empty_rate"] = share_score(sum(not text for text in texts), len(texts))
    return Judged(scores, [_row(task, main.partition(",")[0], sample) for sample in of_main])


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
        shares = all(isinstance(value, int | float) and value in (0, 1) for value in values)
        if shares and found == sum(values) / len(values):
            score = share_score(int(sum(values)), len(values), coverage=self.coverage, floors=floors)
            return replace(score, higher_is_better=higher)
        low, high = _bootstrap(values, aggregate, draws=SLOW.get(metric, RESAMPLES), seed=self.seed)
        return Score(
            value=found,
            n=len(values),
            low=min(low, found),
            high=max(high, found),
            interval="bootstrap",
            coverage=self.coverage,
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

    from quantkit.evaluation.resampling import interval

    chance, n = np.random.default_rng(seed), len(values)
    found = [float(aggregate([values[index] for index in chance.integers(0, n, size=n)])) for _ in range(draws)]
    return interval(np.asarray(found), n)


def _predict(task: Any, name: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, list[Values]]:
    """Return name → the metrics of every row of predictors that understand nothing, by the task's own rules."""
    try:
        if task.OUTPUT_TYPE == "multiple_choice":
            return _choosers(task, samples)
        if task.OUTPUT_TYPE == "generate_until":
            return _writers(task, name, samples)
    except Exception as error:  # rules of a task's own, written for answers of models
        warn(f"lm-eval task {task.task_name}: its own rules fail on a fixed answer, so it has no floors: {error!r}")
    return {}


def _choosers(task: Any, samples: Sequence[Mapping[str, Any]]) -> dict[str, list[Values]]:
    every = [_each_option(task, sample) for sample in samples]
    gold = [_gold_option(row) for row in every]
    most = Counter(option for option in gold if option is not None).most_common(1)
    longest = [
        max(range(len(row)), key=lambda at, s=sample: len(options(task, s)[at]))
        for row, sample in zip(every, samples, strict=True)
    ]
    found = {"constant": [row[0] for row in every], "longest": [row[at] for row, at in zip(every, longest, strict=True)]}
    if most:
        found["majority"] = [row[min(most[0][0], len(row) - 1)] for row in every]
    return found


def _each_option(task: Any, sample: Mapping[str, Any]) -> list[Values]:
    """Return the metrics of a row for each option that could be chosen."""
    count, requests = len(options(task, sample)), len(sample["arguments"])
    return [
        task.process_results(
            sample["doc"],
            [(0.0 if at == chosen or at >= count else UNLIKELY, at == chosen) for at in range(requests)],
        )
        for chosen in range(count)
    ]


def _gold_option(row: Sequence[Values]) -> int | None:
    """Return the option that the task's first metric calls right."""
    return next((at for at, values in enumerate(row) if next(iter(values.values()), None) == 1), None)


def options(task: Any, sample: Mapping[str, Any]) -> list[str]:
    """Return the texts that were compared: continuations of one question, or whole questions with one continuation."""
    pairs = [(str(pair[0]), str(pair[1])) for pair in sample["arguments"]]
    texts = [after for _, after in pairs] if len({before for before, _ in pairs}) == 1 else [before for before, _ in pairs]
    if task.get_config("doc_to_choice") is not None:
        count = len(task.doc_to_choice(sample["doc"]))
        if len(pairs) == 2 * count:  # mutual information asks every option once more without its question
            return [after for _, after in pairs[:count]]
    return texts


def _writers(task: Any, name: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, list[Values]]:
    n = len(samples)
    most = Counter(_gold_text(sample["target"]) for sample in samples).most_common(1)[0][0]
    texts = {
        "empty": [""] * n,
        "majority": [most] * n,
        "echo": [str(sample["arguments"][0][0]) for sample in samples],
    }
    return {label: _values_of_texts(task, name, samples, written) for label, written in texts.items()}


def _values_of_texts(task: Any, name: str, samples: Sequence[Mapping[str, Any]], texts: Iterable[str]) -> list[Values]:
    """Return the metrics of each row had the model written this text, filters included."""
    answers: Any = [[text] * len(sample["resps"][0]) for text, sample in zip(texts, samples, strict=True)]
    docs = [sample["doc"] for sample in samples]
    for ensemble in getattr(task, "_filters", ()):
        if ensemble.name == name:
            for make in ensemble.filters:
                answers = list(make().apply(answers, docs))
    return [task.process_results(doc, [answer]) for doc, answer in zip(docs, answers, strict=True)]


def _row(task: Any, metric: str, sample: Mapping[str, Any]) -> RowResult:
    value = sample.get(metric)
    number = float(value) if isinstance(value, int | float) else None
    kind, gold, answer, text, nll = task.OUTPUT_TYPE, _gold_text(sample["target"]), None, "", None
    if kind == "multiple_choice":
        texts = [text.strip() for text in options(task, sample)]
        chosen = _chosen(task, metric, sample)
        right = _gold_option(_each_option(task, sample))
        gold, answer = gold if right is None else texts[right], texts[chosen]
        nll = -float(sample["filtered_resps"][chosen if right is None else right][0])
    elif kind == "generate_until":
        answer, text = _answer(sample), str(_first(sample["resps"]))
    elif kind == "loglikelihood":
        nll = -float(sample["filtered_resps"][0][0])
        answer = gold if sample["filtered_resps"][0][1] else None
    elif kind == "loglikelihood_rolling":
        nll = -float(sample["filtered_resps"][0])
    return RowResult(
        row=int(sample["doc_id"]),
        gold=gold,
        answer=answer,
        correct=number == 1.0,
        text=text,
        value=None if number in (0.0, 1.0) else number,
        nll=nll,
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
    found = _first(sample["filtered_resps"])
    text = str(found).strip()
    return None if text in ("", UNPARSED) else text


def _first(value: Any) -> Any:
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return "" if isinstance(value, list | tuple) else value


def _gold_text(target: Any) -> str:
    return str(_first(target)).strip()
