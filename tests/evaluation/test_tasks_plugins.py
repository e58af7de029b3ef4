"""Tasks that plugins add: the tutorial's own, asked like any other; and what is wrong with one costs only that one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from quantkit import hookimpl
from quantkit.errors import UsageError
from quantkit.evaluation import plugged
from quantkit.evaluation.plugged import known_tasks
from quantkit.evaluation.sources import read_tasks
from quantkit.evaluation.tasks import TASKS, AnswerTask, ExtractiveQA, Task
from quantkit.methods import Methods, Source
from tests.plugins.example import readme_block


def methods_with(**plugins: Any) -> Methods:
    methods = Methods()
    for name, item in plugins.items():
        methods.register(item, Source(name, f"quantkit-{name} 1"))
    return methods


def declaring(*tasks: Any) -> ModuleType:
    @hookimpl
    def declare_tasks() -> Sequence[type[Task]]:
        return list(tasks)

    module = ModuleType("tasks")
    module.declare_tasks = declare_tasks  # type: ignore[attr-defined]
    return module


@pytest.fixture
def tutorial() -> ModuleType:
    module = ModuleType("last_word")
    exec(readme_block("python", "class LastWord"), vars(module))
    return module


def test_the_tutorials_task_is_read_scored_and_has_floors(
    tutorial: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = methods_with(words=tutorial)
    assert methods.broken == {}
    monkeypatch.setattr(plugged, "installed_methods", lambda: methods)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}?", "answer": f"It is {n}."}) + "\n" for n in ("one", "two")))
    (task,) = read_tasks([str(path)], kind="last-word")
    assert isinstance(task, AnswerTask)
    score = task.score(["One!", ""])
    assert (score.value, score.coverage) == (0.5, 0.5)
    assert {floor.name for floor in score.floors} == {"empty", "constant", "majority", "echo"}
    with pytest.raises(UsageError, match=r"no task is called 'last-wort'\. Did you mean 'last-word'\?"):
        read_tasks([str(path)], kind="last-wort")


@dataclass(frozen=True, kw_only=True)
class Good(ExtractiveQA):
    kind: ClassVar[str] = "good"


@dataclass(frozen=True, kw_only=True)
class Taken(ExtractiveQA):
    kind: ClassVar[str] = "numeric"


@dataclass(frozen=True, kw_only=True)
class Half(AnswerTask):
    kind: ClassVar[str] = "half"


class NoDataclass:
    kind = "free"


@dataclass(frozen=True, kw_only=True)
class Odd(ExtractiveQA):
    kind: ClassVar[str] = "Odd One"


@dataclass(frozen=True, kw_only=True)
class Asking(ExtractiveQA):
    kind: ClassVar[str] = "asking"
    asks: ClassVar[Any] = "options"


@pytest.mark.parametrize(
    ("task", "key", "said"),
    [
        (Taken, "more", "the task 'numeric' exists already; the first is used"),
        (Half, "half", "Half does not implement parse, reference"),
        (NoDataclass, "free", "which is no subclass of quantkit.evaluation.tasks.Task"),
        (Odd, "Odd One", "Odd.kind is 'Odd One'; small letters, digits and hyphens make a word"),
        (Asking, "asking", "Asking asks for options but has no choices, likelihood_scores, chosen"),
    ],
)
def test_a_task_that_breaks_a_rule_costs_only_itself(task: Any, key: str, said: str) -> None:
    known = known_tasks(methods_with(more=declaring(task, Good)))
    assert set(known.tasks) == {*TASKS, "good"}
    assert said in known.broken[key]
    assert "plugin 'more' of quantkit-more 1" in known.broken[key]


def test_a_declaration_that_raises_or_is_no_list_costs_only_its_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    class Raises:
        @hookimpl
        def declare_tasks(self) -> Sequence[type[Task]]:
            raise RuntimeError("no licence")

    class Says:
        @hookimpl
        def declare_tasks(self) -> Any:
            return "last-word"

    methods = methods_with(raises=Raises(), says=Says(), good=declaring(Good))
    known = known_tasks(methods)
    assert "good" in known.tasks
    assert "declare_tasks raised RuntimeError: no licence" in known.broken["raises"]
    assert "declare_tasks returned str, not a list of task classes" in known.broken["says"]
    monkeypatch.setattr(plugged, "installed_methods", lambda: methods)
    with pytest.raises(UsageError, match="task 'raises' is not available: plugin 'raises' of quantkit-raises 1"):
        read_tasks(kind="raises")
