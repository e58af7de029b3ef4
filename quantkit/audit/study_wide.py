"""Which data set does a column such as `squad_v2_em` or `accuracy_boolq` belong to?

A table with one row per model and one column per data set and metric is taken apart, so that each data set has its own n,
latency and floors. Reading the column as a metric of its own would let two spellings of one data set pass as two metrics.
"""

from quantkit.audit.aliases import bound_of, field_of, metric_of
from quantkit.audit.study_records import Raw
from quantkit.audit.values import plain_name

NO_TASK = {
    "test",
    "eval",
    "val",
    "valid",
    "validation",
    "train",
    "training",
    "final",
    "best",
    "last",
    "overall",
    "total",
    "mean",
    "avg",
    "average",
    "median",
    "max",
    "min",
    "std",
    "balanced",
    "weighted",
    "macro",
    "micro",
    "top1",
    "top",
    "norm",
    "score",
    "reported",
}
"""Words beside a metric that name no data set."""
PER_TASK = (
    "n",
    "parsed",
    "coverage",
    "empty",
    "empty_count",
    "latency_s",
    "answer_tokens",
    "tokens",
    "tokens_per_s",
    "overlap",
)
"""Facts that a data set may have of its own; all others are the model's."""


def by_task(raw: Raw) -> list[Raw]:
    """Return the record itself, or one record per data set where its columns name them."""
    names = {name: plain_name(name.rpartition(".")[2]) for name in raw.cells}
    if "task" in {field_of(name) for name in names.values()}:
        return [raw]
    metrics = {name: found for name, plain in names.items() if (found := task_of(plain)) is not None}
    tasks = list(dict.fromkeys(task for task, _ in metrics.values()))
    if not tasks:
        return [raw]
    own = {
        name: found for name, plain in names.items() if name not in metrics and (found := _own_fact(plain, tasks)) is not None
    }
    belongs = metrics | own
    shared = {name: value for name, value in raw.cells.items() if name not in belongs}
    parts = []
    for task in tasks:
        mine = {name: rest for name, (owner, rest) in belongs.items() if owner == task}
        facts = {name: value for name, value in shared.items() if metric_of(names[name]) is None}
        cells = facts | {name: raw.cells[name] for name in mine} | {"task": task}
        parts.append(Raw(where=raw.where, cells=cells, taken=mine))
    if raw.samples or any(metric_of(names[name]) is not None for name in shared):
        parts.append(Raw(where=raw.where, cells=shared, samples=raw.samples, faults=raw.faults))
    return parts


def task_of(name: str) -> tuple[str, str] | None:
    """Return the data set and the metric (or a bound of it) that a column names; None where it does not name both.

    >>> task_of("squad_v2_em"), task_of("accuracy_boolq"), task_of("test_accuracy"), task_of("exact_match")
    (('squad_v2', 'em'), ('boolq', 'accuracy'), None, None)
    """
    if metric_of(name) or bound_of(name) or field_of(name):
        return None
    words = name.split("_")
    cuts = [("_".join(words[:cut]), "_".join(words[cut:])) for cut in range(1, len(words))]
    for task, rest in cuts:
        if task not in NO_TASK and (metric_of(rest) or bound_of(rest)):
            return task, rest
    for rest, task in reversed(cuts):
        if task not in NO_TASK and metric_of(rest):
            return task, rest
    return None


def _own_fact(name: str, tasks: list[str]) -> tuple[str, str] | None:
    for task in tasks:
        for rest in (name.removeprefix(f"{task}_"), name.removesuffix(f"_{task}")):
            if rest != name and field_of(rest) in PER_TASK:
                return task, rest
    return None
