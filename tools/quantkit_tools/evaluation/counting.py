"""Does a filed result answer what is asked now, and who is at work on it? Told by rows and settings, never by its being there.

A result under the same task name, of other rows, another seed or another reference model, would otherwise stand in a table
beside results that it cannot be compared with.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.evaluation.results import SCHEMA_VERSION as RESULT_SCHEMA
from quantkit.files import artifact_hash
from quantkit.locks import try_lock
from quantkit_registry.adapters import ADAPTER_CONFIG
from quantkit_registry.store import RESULTS, Artifact, Registry
from quantkit_tools.evaluation.computing import computed_otherwise
from quantkit_tools.evaluation.flags import Flags
from quantkit_tools.evaluation.reference import HASH_SHOWN, SOURCE

if TYPE_CHECKING:
    from quantkit.evaluation.tasks import Task

NOTHING = "no result"


def why_pending(found: Mapping[str, Any] | None, task: "Task", flags: Flags, reference: str | None = None) -> str:
    """Return why a filed result does not count as this task's under these settings; empty where it does.

    `reference` is how the name of the model begins that it is to be compared with. Batch size, device and, unless
    one was asked for, data type are of the machine; every other setting that the result says it depended on must agree.
    """
    if found is None:
        return NOTHING
    if found.get("schema_version") != RESULT_SCHEMA:
        return f"its result has schema_version {found.get('schema_version')!r}, not {RESULT_SCHEMA}"
    if found.get("data_fingerprint") != task.fingerprint:
        return "its result is of other rows"
    wanted = {"kind": task.kind, "seed": flags.seed, "n": len(task.examples)}
    said = found.get("settings")
    settings: Mapping[str, Any] = said if isinstance(said, Mapping) else {}
    asked = {"max_new_tokens": flags.max_new_tokens, "system_prompt": task.system_prompt, **_plain(task.settings())}
    pairs = [(name, found.get(name), value) for name, value in wanted.items()]
    pairs += [(name, settings[name], value) for name, value in asked.items() if name in settings]
    for name, value, other in pairs:
        if value != other:
            return f"its result has {name} {value!r}, not {other!r}"
    compared = str(settings.get("reference") or "")
    if reference is not None and not compared.startswith(reference):
        return f"its result is compared with {compared or 'no reference model'}, not {reference}"
    return computed_otherwise(flags, settings)


def reference_of(flags: Flags, registry: Registry, artifact: Artifact) -> str | None:
    """Return how the name of an artifact's reference model begins in its results: the name, and for ours the hash."""
    path = flags.reference
    if path == SOURCE and artifact.record is not None:
        near = (parent.name for parent in artifact.record.parents if (registry.root / parent.name).is_dir())
        path = next(near, artifact.record.base.name_or_path)
    if path is None:
        return None
    folder = next((item for item in (Path(path).expanduser(), registry.root / path) if item.is_dir()), None)
    name = path.rstrip("/").rpartition("/")[2] if folder is None else folder.name
    known = artifact_hash(folder) if folder is not None and not (folder / ADAPTER_CONFIG).is_file() else None
    return f"{name} {known[:HASH_SHOWN]}" if known else name


@contextmanager
def claimed(flags: Flags, registry: Registry, artifact: str, tasks: "Sequence[Task]") -> "Iterator[list[Task]]":
    """Yield the tasks to do on an artifact, locked until the end of the block: all, or with `--pending` those left."""
    if not flags.pending:
        yield list(tasks)
        return
    with ExitStack() as stack:
        mine = [task for task in tasks if stack.enter_context(try_lock(lock_path(registry, artifact, task.name)))]
        found = registry.results(artifact)
        reference = None if flags.reference is None else reference_of(flags, registry, registry.find(artifact))
        yield [task for task in mine if why_pending(found.get(task.name), task, flags, reference)]


def lock_path(registry: Registry, artifact: str, task: str) -> Path:
    """Return where the lock of one artifact and task stands; no result file begins with a dot."""
    return registry.root / RESULTS / artifact / f".{task}.lock"


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a result's file has them: tuples are lists there."""
    return dict(json.loads(json.dumps(settings)))
