"""Which tasks are meant by these names, and can they be run here at all?

Task definitions of lm-eval are YAML files, a few thousand of them come with it. Reading them all takes longer than many an
evaluation, so the files that define the wanted names are found by their text first, and everything is read only when that is
not enough (tags, groups whose members stand elsewhere). Definitions of the user's own come from a folder and win over
lm-eval's. What lm-eval would quietly ignore (shots for a task that is fixed to none) is refused instead.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError, did_you_mean

KIND = "harness"
"""Kind of every result that lm-eval gave."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Tasks of lm-eval by name with their data read, and the groups that were asked for by name."""

    tasks: dict[str, Any]
    groups: dict[str, Any]


def filed_as(name: str) -> str:
    """Return the name that results of a task of lm-eval are filed under.

    >>> filed_as("arc_challenge"), filed_as("leaderboard::bbh/x")
    ('harness.arc_challenge', 'harness.leaderboard-bbh-x')
    """
    stem = name.rsplit("/", 1)[-1] if name.endswith(".yaml") else name
    return f"{KIND}." + re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:80]


def load_tasks(names: Sequence[str], *, include: str | None = None, num_fewshot: int | None = None, seed: int = 0) -> Loaded:
    """Return the tasks of these names (tasks, groups, tags, or files that end in .yaml), ready to be run.

    `include` is a folder of further definitions; code that these refer to is run.

    Raises:
        UsageError: a name is unknown, a definition or its data cannot be read, or a task cannot be run as asked.
    """
    if include is not None and not Path(include).is_dir():
        raise UsageError(f"--harness-include {include}: no such folder; it should hold task definitions of lm-eval (.yaml)")
    if num_fewshot is not None and num_fewshot < 0:
        raise UsageError(f"num_fewshot is {num_fewshot}; it must be at least 0")
    found = _load(list(dict.fromkeys(names)), [] if include is None else [Path(include)])
    loaded = Loaded(dict(found["tasks"]), dict(found.get("groups", {})))
    for name, task in loaded.tasks.items():
        _prepare(name, task, num_fewshot, seed)
    return loaded


def _load(names: list[str], include: list[Path]) -> Any:
    """Load with the definitions that are needed, or with all of them where more turn out to be needed."""
    from lm_eval.tasks import TaskManager

    own = TaskManager(include_defaults=False, include_path=list(include)) if include else None
    missing = [name for name in names if not name.endswith(".yaml") and (own is None or name not in own.task_index)]
    folders = _folders_defining(missing)
    if folders is not None:
        few = own if own is not None and not folders else TaskManager(include_defaults=False, include_path=[*folders, *include])
        try:
            return few.load(names)
        except KeyError:
            pass  # a member of a group that is defined elsewhere
        except Exception as error:
            raise _unreadable(names, error) from None
    every = TaskManager(include_path=list(include))
    unknown = next((name for name in missing if name not in every.task_index), None)
    if unknown is not None:
        raise UsageError(f"lm-eval has no task, group or tag {unknown!r}.{did_you_mean(unknown, every.all_tasks)}")
    try:
        return every.load(names)
    except Exception as error:
        raise _unreadable(names, error) from None


def _folders_defining(names: Sequence[str]) -> list[Path] | None:
    """Return lm-eval's folders whose files define these tasks and groups; None where one is not found by its name."""
    import lm_eval.tasks

    if not names:
        return []
    root = Path(str(lm_eval.tasks.__file__)).parent
    texts = [name.encode() for name in names]
    wanted = re.compile(rb"^(?:task|group):[ \t]*[\"']?(" + b"|".join(map(re.escape, texts)) + rb")[\"']?[ \t]*$", re.MULTILINE)
    found: dict[bytes, Path] = {}
    for path in root.rglob("*.yaml"):
        text = path.read_bytes()
        for name in wanted.findall(text) if any(name in text for name in texts) else ():
            found.setdefault(name, path.parent)
    return list(dict.fromkeys(found.values())) if len(found) == len(names) else None


def _unreadable(names: Sequence[str], error: Exception) -> UsageError:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return UsageError(
        f"--harness {','.join(names)}: a definition or its data cannot be loaded: {type(error).__name__}: {text[:300]};"
        " lm-eval fetches data by the name in the task's dataset_path, which needs a network or a filled cache"
    )


def _prepare(name: str, task: Any, num_fewshot: int | None, seed: int) -> None:
    """Set shots and their seed as lm-eval's own command does, and refuse what cannot be run as asked."""
    if getattr(task, "UNSAFE_CODE", False):
        raise UsageError(f"lm-eval task {name}: it runs code that the model writes, which quantkit does not do")
    if getattr(task, "MULTIMODAL", False):
        raise UsageError(f"lm-eval task {name}: it shows images or sounds; quantkit evaluates language models")
    fixed = task.get_config("num_fewshot")
    if num_fewshot is None:
        if fixed is None:
            task.set_config(key="num_fewshot", value=0)
    elif fixed == 0 and num_fewshot != 0:
        raise UsageError(f"lm-eval task {name}: its definition fixes num_fewshot to 0; leave out --num-fewshot {num_fewshot}")
    else:
        task.set_config(key="num_fewshot", value=num_fewshot)
    task.set_fewshot_seed(seed=seed)
