"""Which model is an artifact compared with, and can the two be compared? (`quantkit evaluate --reference`)

The reference is detected, and its tokenizer compared with the artifact's, before any weights are read; its own are read when
everything else has been measured. `source` is what the artifact's record says it was made from, so that one command compares
each of many quantizations with its own source; a fixed path would compare some of them with a stranger.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quantkit import console
from quantkit.errors import UsageError
from quantkit_registry.store import Registry
from quantkit_tools.evaluation.computing import load_opened
from quantkit_tools.evaluation.flags import Flags

if TYPE_CHECKING:
    from quantkit.evaluation.divergence import Reference
    from quantkit.evaluation.tasks import Task
    from quantkit_tools.opening import Opened

SOURCE = "source"
HASH_SHOWN = 12


def open_reference(flags: Flags, opened: "Opened", tokenizer: Any, tasks: "Sequence[Task]") -> "Reference | None":
    """Return the model that `--reference` names, ready to load; None where none was asked for, or no task of ours.

    Raises:
        UsageError: a task needs one and none is named, the record names no source, or the tokenizers differ.
    """
    if flags.reference is None:
        for task in tasks:
            if task.asks == "divergence":
                raise UsageError(
                    f"task {task.kind!r} compares with a reference model; --reference names it ({SOURCE}: what the artifact"
                    " was made from)"
                )
        return None
    if not tasks:
        return None
    from quantkit.evaluation.divergence import Reference, require_same_vocabulary
    from quantkit.methods import installed_methods
    from quantkit.modeling import load_tokenizer
    from quantkit_tools.opening import open_path

    path = source_of(opened, Registry(flags.registry)) if flags.reference == SOURCE else flags.reference
    other = open_path(
        path,
        installed_methods(),
        registry=Registry(flags.registry),
        device=flags.device,
        trust_remote_code=flags.trust_remote_code,
    )
    theirs = load_tokenizer(other.tokenizer, trust_remote_code=flags.trust_remote_code)
    require_same_vocabulary(tokenizer, theirs, other.name)
    console.say(f"{opened.name} is compared with {other.name} ({other.detection.kind}, {other.source.spec.method})")

    def load() -> Any:
        return load_opened(flags, other)

    return Reference(f"{other.name} {other.artifact[:HASH_SHOWN]}", load)


def source_of(opened: "Opened", registry: Registry) -> str:
    """Return the path of what an artifact was made from: its nearest parent that is in the registry, else its base.

    Raises:
        UsageError: neither a record nor an adapter's configuration names one.
    """
    record = opened.detection.record
    for parent in record.parents if record else ():
        if (registry.root / parent.name).is_dir():
            return str(registry.root / parent.name)
    found = record.base.name_or_path if record else opened.detection.base
    if not found:
        raise UsageError(f"{opened.source.path}: nothing records what it was made from; --reference PATH names a model")
    return found
