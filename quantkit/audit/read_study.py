"""What does the metrics JSON or summary CSV of an evaluation of unknown layout say?

Keys are taken by the words such files use (`aliases`), nested objects by where they stand; what was understood and what was not
is said. A fixed layout would read one study's files, and pass over the fault in the next.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quantkit.audit.aliases import bound_of, field_of, metric_of, sample_field_of
from quantkit.audit.facts import Reading
from quantkit.audit.plain import as_objects
from quantkit.audit.study_records import Raw, named_after, to_measured
from quantkit.audit.study_rows import Names
from quantkit.audit.study_wide import by_task, task_of
from quantkit.audit.tables import Table
from quantkit.audit.values import plain_name
from quantkit.errors import UsageError

KIND = "study"
GROUPS = {
    "metrics", "scores", "results", "summary", "quantization", "hardware_info", "vram_peaks", "performance", "settings",
    "config", "generation", "generation_config", "evaluation", "overall", "aggregate", "metadata", "latency", "tokens",
    "memory", "model", "hardware", "timing", "stats", "statistics", "training", "quality", "efficiency", "data",
    "models", "runs", "evaluations", "experiments", "by_model", "datasets", "tasks", "by_dataset", "by_task",
}  # fmt: skip
"""Keys that hold facts of the record around them, not a record of their own."""
OF_TASKS = {"datasets", "tasks", "by_dataset", "by_task"}
"""Keys whose own keys are names of tasks."""
DEEPEST = 8
MOST_VALUES = 200_000
Child = tuple[str, Any, str]
"""Key, value and the key around it."""


class UnfitError(UsageError):
    """JSON that is larger or deeper than results are; below a folder it is taken for something else."""


def read_table(file: str, header: list[str], table: Table) -> Reading | None:
    """Return what a table says, one model per row or one answer per row; None where it holds neither."""
    fields = {sample_field_of(plain_name(name)) for name in header}
    if "text" in fields and fields & {"gold", "prompt"} and len(table) > 1:
        return read_answers(file, [(f"line {line}", cells) for line, cells in table])
    raws = [Raw(where=f"line {line}", cells=dict(cells)) for line, cells in table]
    return _reading(file, raws)


def read_lines(file: str, lines: list[tuple[int, Any]]) -> Reading | None:
    """Return what JSON lines say, one model or one answer per line; None where they hold neither."""
    objects = [(f"line {number}", line) for number, line in lines if isinstance(line, dict)]
    if not objects:
        return None
    if _is_answer(objects[0][1]):
        return read_answers(file, objects)
    return read(file, [line for _, line in objects])


def read_answers(file: str, answers: list[tuple[str, Any]]) -> Reading | None:
    """Return what a file of single answers says, grouped by model and data set where it names them."""
    groups: dict[tuple[str, str], Raw] = {}
    for where, answer in answers:
        named: dict[str, str] = {"model": named_after(file), "task": "unnamed"}
        for name, value in answer.items():
            wanted = field_of(plain_name(str(name)))
            if wanted in named and isinstance(value, str) and value.strip():
                named[wanted] = value.strip()
        raw = groups.setdefault((named["model"], named["task"]), Raw(where="", cells=dict(named)))
        raw.samples.append((where, answer))
    return _reading(file, list(groups.values()))


def read(file: str, data: Any) -> Reading | None:
    """Return what a JSON file says; None where no metric and no answer stands in it.

    Raises:
        UnfitError: it is nested too deeply or holds too many values.
    """
    walk = _Walk(file)
    walk.enter(data, Raw(where="", cells={}), 0)
    return _reading(file, walk.raws)


def _reading(file: str, raws: list[Raw]) -> Reading | None:
    raws = [part for raw in raws for part in by_task(raw)]
    raws = [
        raw for raw in raws if raw.samples or raw.taken or any(_is_metric(name) for name in raw.cells) or _is_long(raw.cells)
    ]
    if not raws:
        return None
    names = Names()
    measured, faults = to_measured(file, raws, names)
    unknown = tuple(name for name in names.not_understood if name not in names.understood)
    return Reading(
        file=file,
        kind=KIND,
        measured=tuple(measured),
        understood=names.understood,
        not_understood=unknown,
        faults=tuple(faults),
    )


def _is_metric(name: str) -> bool:
    last = plain_name(name.rpartition(".")[2])
    return metric_of(last) is not None or bound_of(last) is not None or task_of(last) is not None


def _is_long(cells: Mapping[str, Any]) -> bool:
    """Whether a row is model, metric and value."""
    return {"metric", "value"} <= {field_of(plain_name(name.rpartition(".")[2])) for name in cells}


def _is_answer(item: Mapping[str, Any]) -> bool:
    fields = {sample_field_of(plain_name(str(name))) for name in item}
    return "text" in fields and bool(fields & {"gold", "prompt", "correct"})


@dataclass
class _Walk:
    """Goes through nested data and finds the records in it."""

    file: str
    raws: list[Raw] = field(default_factory=list)
    seen: int = 0

    def enter(self, node: Any, around: Raw, depth: int) -> None:
        """Add the record that an object is, and those inside it; `around` is what the objects around it say."""
        if isinstance(node, list):
            if node and isinstance(node[0], dict) and _is_answer(node[0]):
                node = {"answers": node}
            else:
                for index, item in enumerate(as_objects(node)):
                    self.enter(item, Raw(where=f"{around.where}[{index}]", cells=dict(around.cells)), depth + 1)
                return
        if not isinstance(node, dict):
            return
        own = Raw(where=around.where, cells=dict(around.cells))
        children: list[Child] = []
        self._absorb(node, "", own, children, depth)
        inherited = {name: value for name, value in own.cells.items() if not _is_metric(name)}
        said = {field_of(plain_name(name.rpartition(".")[2])) for name in inherited}
        for key, child, container in children:
            inside = {field_of(plain_name(str(name))) for name in child} if isinstance(child, dict) else set()
            named = {}
            if isinstance(child, dict):
                words = ("task",) if container in OF_TASKS else ("model", "task")
                which = next((word for word in words if word not in said | inside), None)
                named = {} if which is None else {which: key}
            self.enter(child, Raw(where=f"{around.where}.{key}".strip("."), cells=inherited | named), depth + 1)
        if own.samples or any(_is_metric(name) and name not in around.cells for name in own.cells) or _is_long(own.cells):
            self.raws.append(own)

    def _absorb(self, node: Mapping[str, Any], path: str, own: Raw, children: list[Child], depth: int) -> None:
        if depth > DEEPEST:
            if _holds_metric(node, 0):
                raise UnfitError(f"{self.file}: {path or 'the data'} is nested more than {DEEPEST} objects deep")
            return
        for key, value in node.items():
            self.seen += 1
            if self.seen > MOST_VALUES:
                raise UnfitError(f"{self.file}: more than {MOST_VALUES} values")
            name = f"{path}.{key}".strip(".")
            if isinstance(value, dict):
                if plain_name(str(key)) in GROUPS or not _holds_metric(value, depth):
                    self._absorb(value, name, own, children, depth + 1)
                else:
                    children.append((str(key), value, plain_name(path.rpartition(".")[2])))
            elif isinstance(value, list):
                self._absorb_list(str(key), name, value, own, children)
            else:
                own.cells[name] = value

    def _absorb_list(self, key: str, name: str, value: list[Any], own: Raw, children: list[Child]) -> None:
        objects = as_objects(value)
        if objects and _is_answer(objects[0]):
            for index, item in enumerate(value):
                if isinstance(item, dict):
                    own.samples.append((f"{name}[{index}]", item))
                else:
                    own.faults.append(f"{name}[{index}] is {type(item).__name__}; an answer as an object is wanted")
        elif objects:
            children.append((key, value, ""))
        elif any(isinstance(item, str) for item in value) and sample_field_of(plain_name(key)) == "text":
            own.samples += [(f"{name}[{index}]", {"text": item}) for index, item in enumerate(value)]


def _holds_metric(node: Any, depth: int) -> bool:
    if depth > DEEPEST:
        return False
    if isinstance(node, dict):
        return any(
            (_is_metric(str(key)) and not isinstance(value, dict | list)) or _holds_metric(value, depth + 1)
            for key, value in node.items()
        )
    return isinstance(node, list) and any(_holds_metric(item, depth + 1) for item in as_objects(node)[:3])
