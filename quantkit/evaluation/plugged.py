"""Which kinds of task do plugins add, and is each of them one that can be run?

What a plugin declares is looked at when a task is asked for that quantkit does not have. A task that breaks a rule costs only
itself: the reason is kept under its word (or its plugin's name) and told when it is asked for.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, get_args

from quantkit.evaluation.tasks import TASKS, AnswerTask, Asks, Task
from quantkit.methods import Methods, installed_methods

WORD = re.compile(r"[a-z][a-z0-9_-]*")
RUNNER_NEEDS = {"options": ("choices", "likelihood_scores", "chosen")}
"""What the runner calls on a task that asks for this, beside what `Task` has."""


@dataclass(frozen=True, slots=True)
class KnownTasks:
    """The word of `--task` to its class, quantkit's own first; word or plugin to the reason why a task is left out."""

    tasks: dict[str, type[Task]]
    broken: dict[str, str]


def known_tasks(methods: Methods | None = None) -> KnownTasks:
    """Return quantkit's own tasks and those of plugins."""
    methods = installed_methods() if methods is None else methods
    known = KnownTasks(dict(TASKS), dict(methods.broken))
    for source, answer in methods.declared_tasks():
        if isinstance(answer, Exception):
            known.broken[source.plugin] = f"{source}: declare_tasks raised {type(answer).__name__}: {answer}"
        elif isinstance(answer, str) or not isinstance(answer, Sequence):
            known.broken[source.plugin] = (
                f"{source}: declare_tasks returned {type(answer).__name__}, not a list of task classes"
            )
        else:
            for task in answer:
                kind = getattr(task, "kind", None)
                fault = _fault(task, known.tasks)
                if fault:
                    known.broken[kind if isinstance(kind, str) and kind not in known.tasks else source.plugin] = (
                        f"{source}: {fault}"
                    )
                else:
                    known.tasks[task.kind] = task
    return known


def _fault(task: Any, known: Mapping[str, type[Task]]) -> str:
    """Say which rule a declared task breaks; empty where none."""
    if not isinstance(task, type) or not issubclass(task, Task):
        return f"declare_tasks names {task!r}, which is no subclass of quantkit.evaluation.tasks.Task"
    kind, name = getattr(task, "kind", None), task.__name__
    abstract = ", ".join(sorted(getattr(task, "__abstractmethods__", ())))
    lacking = ", ".join(item for item in RUNNER_NEEDS.get(task.asks, ()) if not hasattr(task, item))
    rules = (
        (
            isinstance(kind, str) and WORD.fullmatch(kind),
            f"{name}.kind is {kind!r}; small letters, digits and hyphens make a word",
        ),
        (kind not in known and kind != "auto", f"the task {kind!r} exists already; the first is used"),
        (is_dataclass(task), f"{name} is no dataclass"),
        (not abstract, f"{name} does not implement {abstract}"),
        (task.asks in get_args(Asks), f"{name}.asks is {task.asks!r}; it must be one of {', '.join(get_args(Asks))}"),
        (task.asks != "answers" or issubclass(task, AnswerTask), f"{name} asks for answers but is no AnswerTask"),
        (not lacking, f"{name} asks for {task.asks} but has no {lacking}; inherit ChoiceLikelihood"),
    )
    return next((fault for holds, fault in rules if not holds), "")
