"""What of a save could a power failure take away again? Read from the order of its calls.

What was written is durable after an fsync of the file, a name after an fsync of the folder it stands in. A name that readers
see must come after the first, and nothing may be told, nor removed, before the second.
"""

from collections.abc import Sequence
from pathlib import PurePath

from tests.reliability.faults.calls import WRITES, Call

CHANGES = WRITES | {"ftruncate", "truncate", "fallocate"}
SYNCS = frozenset({"fsync", "fdatasync"})


def could_be_lost(calls: Sequence[Call], root: str) -> list[str]:
    """Return what is wrong with the order of a save's calls under a root; hidden names are what readers do not see."""
    unwritten: set[str] = set()
    unnamed: set[str] = set()
    """Folders with names that are not durable yet."""
    shown: set[str] = set()
    """Folders in which a name that readers see was changed since they were made durable."""
    faults = []
    for call in calls:
        if call.what in CHANGES:
            unwritten.add(call.path)
        elif call.what in SYNCS:
            unwritten.discard(call.path)
            unnamed.discard(call.path)
            shown.discard(call.path)
        elif call.what in ("open", "mkdir", "link", "symlink"):
            unnamed.add(_folder(call.path))
        elif call.what == "rename":
            if not _hidden(call.to, root):
                waiting = sorted(path for path in unwritten | unnamed if _is_in(path, call.path))
                faults += [f"{path} is not durable when it gets the name {call.to}" for path in waiting]
                shown.add(_folder(call.to))
            unwritten = {_moved(path, call) for path in unwritten}
            unnamed = {_moved(path, call) for path in unnamed}
        elif call.what in ("unlink", "rmdir") and _folder(call.path) not in shown:
            faults += [f"{call.path} goes before the new names in {folder} are durable" for folder in sorted(shown)]
    return faults + [f"the new names in {folder} are not durable at the end" for folder in sorted(shown)]


def _folder(path: str) -> str:
    return str(PurePath(path).parent)


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _moved(path: str, call: Call) -> str:
    return call.to + path[len(call.path) :] if _is_in(path, call.path) else path


def _hidden(path: str, root: str) -> bool:
    return any(part.startswith(".") for part in PurePath(path).relative_to(root).parts)
