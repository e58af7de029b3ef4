"""What would somebody get on these rows of lm-eval who understands nothing?

Predictors that always take the first option, the most frequent right one or the longest, write nothing, always the same, or
the question again. Their answers go through the task's own rules, filters included, so a task may define its metrics as it
likes, and a floor is never judged by other rules than the model.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quantkit.console import warn

UNLIKELY = -100.0
"""Log-likelihood of the options that a predictor does not choose."""
Values = Mapping[str, Any]
"""Metric to what one row contributes to it."""


def predict(task: Any, name: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, list[Values]]:
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
    every = [each_option(task, sample) for sample in samples]
    gold = [gold_option(row) for row in every]
    most = Counter(option for option in gold if option is not None).most_common(1)
    longest = [_longest(options(task, sample)) for sample in samples]
    found = {"constant": [row[0] for row in every], "longest": [row[at] for row, at in zip(every, longest, strict=True)]}
    if most:
        found["majority"] = [row[min(most[0][0], len(row) - 1)] for row in every]
    return found


def _longest(texts: Sequence[str]) -> int:
    return max(range(len(texts)), key=lambda at: len(texts[at]))


def each_option(task: Any, sample: Mapping[str, Any]) -> list[Values]:
    """Return the metrics of a row for each option that could be chosen."""
    count, requests = len(options(task, sample)), len(sample["arguments"])
    return [
        task.process_results(
            sample["doc"],
            [(0.0 if at == chosen or at >= count else UNLIKELY, at == chosen) for at in range(requests)],
        )
        for chosen in range(count)
    ]


def gold_option(row: Sequence[Values]) -> int | None:
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
    most = Counter(gold_text(sample["target"]) for sample in samples).most_common(1)[0][0]
    texts = {
        "empty": [""] * n,
        "majority": [most] * n,
        "echo": [str(sample["arguments"][0][0]) for sample in samples],
    }
    return {label: values_of_texts(task, name, samples, written) for label, written in texts.items()}


def values_of_texts(task: Any, name: str, samples: Sequence[Mapping[str, Any]], texts: Iterable[str]) -> list[Values]:
    """Return the metrics of each row had the model written this text, filters included."""
    answers: Any = [[text] * len(sample["resps"][0]) for text, sample in zip(texts, samples, strict=True)]
    docs = [sample["doc"] for sample in samples]
    for ensemble in getattr(task, "_filters", ()):
        if ensemble.name == name:
            for make in ensemble.filters:
                answers = list(make().apply(answers, docs))
    return [task.process_results(doc, [answer]) for doc, answer in zip(docs, answers, strict=True)]


def first_of(value: Any) -> Any:
    """Return the first thing in nested lists; the empty string where there is none.

    >>> first_of([[["a"], "b"]]), first_of([])
    ('a', '')
    """
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return "" if isinstance(value, list | tuple) else value


def gold_text(target: Any) -> str:
    """Return a target as text; of several right ones the first."""
    return str(first_of(target)).strip()
