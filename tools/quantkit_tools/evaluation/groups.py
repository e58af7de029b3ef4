"""Which of several paths share a process, and what happens to the others when one fails?

Adapters whose records name the same base and recipe come one after another onto one loaded base; everything else has a process
of its own. A group is decided from JSON alone: starting torch here would cost every process its memory twice.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit import console
from quantkit.errors import QuantkitError
from quantkit.evaluation.results import ArtifactResult
from quantkit.headers import read_object
from quantkit_registry.adapters import ADAPTER_CONFIG
from quantkit_registry.records import RECORD_FILE
from quantkit_registry.store import Registry
from quantkit_tools.evaluation.computing import load_opened
from quantkit_tools.evaluation.flags import Flags
from quantkit_tools.evaluation.scoring import evaluate_path, open_named, score

if TYPE_CHECKING:
    from quantkit.memory import MemoryLog

SHARED_LOAD = "load adapter onto the shared base"
Failure = dict[str, Any]
OF_THE_BASE = ("method", "stage", "spec", "options", "compute_dtype")
"""Parts of a recipe that decide what the base in memory is; which layers carry adapters does not."""


def evaluate_each(flags: Flags) -> tuple[list[ArtifactResult], list[Failure]]:
    """Evaluate every path, adapters of one base together, each group in a fresh process; return results and failures."""
    done: list[ArtifactResult] = []
    failed: list[Failure] = []
    for group in groups_of(flags):
        if len(group) > 1:
            console.say(f"{len(group)} adapters of one base and recipe: the base is loaded once")
        found, faults = in_own_process(flags, group)
        done += found
        failed += faults
    place = {path: index for index, path in enumerate(flags.paths)}
    return sorted(done, key=lambda item: place[item.path]), sorted(failed, key=lambda item: place[item["path"]])


def groups_of(flags: Flags) -> list[tuple[str, ...]]:
    """Return the paths, those together whose bases are the same in memory; the first of each group in the order given."""
    groups: dict[str, list[str]] = {}
    for path in dict.fromkeys(flags.paths):
        groups.setdefault(_base_in_memory(flags, path) or f"alone: {path}", []).append(path)
    return [tuple(group) for group in groups.values()]


def evaluate_group(flags: Flags, paths: tuple[str, ...]) -> tuple[list[ArtifactResult], list[Failure]]:
    """Evaluate paths in this process, adapters on one base; one that fails does not take the others with it."""
    done: list[ArtifactResult] = []
    failed: list[Failure] = []
    shared = SharedBase(flags)
    for path in paths:
        try:
            done.append(evaluate_path(flags, path) if len(paths) == 1 else shared.evaluate(path))
        except QuantkitError as error:
            failed.append({"path": path, "error": str(error), "exit_code": error.exit_code})
        except Exception as error:  # one path's failure must not take the others with it
            failed.append({"path": path, "error": f"{type(error).__name__}: {error}", "exit_code": 1})
    return done, failed


class SharedBase:
    """One loaded base on which adapters are exchanged."""

    def __init__(self, flags: Flags) -> None:
        self._flags = flags
        self._model: Any = None

    def evaluate(self, path: str) -> ArtifactResult:
        """Load an adapter, together with the base if that is not there yet, and score it."""
        from quantkit.switching import add_adapter, use_adapter

        flags, opened = self._flags, open_named(self._flags, path)

        def load(memory: "MemoryLog") -> Any:
            if self._model is None:
                with memory.stage("load"):
                    self._model = load_opened(flags, opened)
            else:
                with memory.stage(SHARED_LOAD):
                    use_adapter(self._model, add_adapter(self._model, opened.source.path))
            return self._model

        return score(flags, path, opened, load)


def in_own_process(flags: Flags, paths: tuple[str, ...]) -> tuple[list[ArtifactResult], list[Failure]]:
    """Evaluate a group in a fresh process; when that dies, each path of the group is tried in one of its own."""
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    start = console.use_stderr if flags.json else None
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"), initializer=start) as pool:
        try:
            return pool.submit(evaluate_group, flags, paths).result()
        except BrokenProcessPool:
            if len(paths) == 1:
                text = "its process ended without a result (killed, or out of memory)"
                return [], [{"path": paths[0], "error": text, "exit_code": 1}]
    console.warn(f"the process of {len(paths)} adapters ended without a result; each is tried in one of its own")
    alone = [in_own_process(flags, (path,)) for path in paths]
    return [item for done, _ in alone for item in done], [item for _, failed in alone for item in failed]


def _base_in_memory(flags: Flags, path: str) -> str | None:
    """Return what the base of an adapter is once it is loaded, as text; None for anything else, and where it cannot be told."""
    root = Registry(flags.registry).root
    folder = next((item for item in (Path(path).expanduser(), root / path) if item.is_dir()), None)
    if folder is None or not (folder / ADAPTER_CONFIG).is_file():
        return None
    try:
        config = read_object(folder / ADAPTER_CONFIG)
        record = read_object(folder / RECORD_FILE) if (folder / RECORD_FILE).is_file() else {}
    except QuantkitError:
        return None  # whoever evaluates it says what is wrong
    base, recipe = record.get("base"), record.get("recipe")
    facts: list[Any] = [flags.method, flags.base, config.get("peft_type"), config.get("projection_prng_key")]
    if isinstance(base, dict) and isinstance(recipe, dict) and base.get("fingerprint"):
        facts += [base["fingerprint"], {key: recipe.get(key) for key in OF_THE_BASE}]
    elif flags.method is not None or flags.base is not None:
        facts += [flags.base or config.get("base_model_name_or_path"), config.get("revision")]
    else:
        return None
    return json.dumps(facts, sort_keys=True)
