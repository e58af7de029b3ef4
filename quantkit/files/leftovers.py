"""What did killed processes leave in a folder, and what belongs to living ones?

Who works in a temporary folder holds a lock on it, which the kernel takes away when the process dies, so leftovers go at the
next write and living processes are left alone. Going by age, the usual way, keeps gigabytes for a day and still takes a folder
away from a process that was stopped overnight; it remains where a lock says nothing: file systems without locks, and folders of
other machines, whose locks a shared file system may not show.
"""

import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantkit.files.renaming import rename_new, sync_folder
from quantkit.files.single import TEMPORARY
from quantkit.locks import NoLocksError, hold

WRITING, REPLACED, REMOVING = ".writing-", ".replaced-", ".removing-"
MAKING = ".quantkit-making"
"""End of the names of the locks that runs hold."""
DAY_S = 86_400.0


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield a new folder in `parent` that nobody takes for a leftover before the block ends; the caller removes it.

    Raises:
        OSError: `parent` cannot be written.
    """
    handle = None
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=f"{prefix}{this_machine()}-"))
        try:
            handle = hold(folder)
        except NoLocksError:
            break
        except FileNotFoundError:
            continue  # taken for a leftover in the moment before it was locked
        if handle is not None:
            break
    try:
        yield folder
    finally:
        if handle is not None:
            os.close(handle)


def remove_leftovers(folder: Path, *, older_than_s: float = DAY_S) -> list[str]:
    """Clear away what dead processes left in `folder`; return what was done.

    An artifact that was moved aside to be replaced (`.replaced-*`) and is missing under its name is put back. Where locks
    cannot tell, only what did not change for `older_than_s` counts as left. What cannot be removed stays.
    """
    done: list[str] = []
    try:
        found = sorted(entry.name for entry in os.scandir(folder) if entry.name.startswith("."))
    except OSError:
        return done
    for path in (folder / name for name in found if name.endswith((MAKING, TEMPORARY))):
        _remove_unheld(path)
    for path in (folder / name for name in found if name.startswith((WRITING, REPLACED, REMOVING))):
        with _left(path, older_than_s) as left:
            if not left:
                continue
            try:
                if path.name.startswith(REPLACED):
                    done += [f"put {name} back" for name in _put_back(path)]
                else:
                    done.append(f"removed {path.name}")
            except OSError:
                continue  # a folder that may be read only: what was moved aside stays where it is
            remove_tree(path)
    return done


def this_machine() -> str:
    """Return eight digits that stand for this machine in the names of temporary folders."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def put_back(folder: Path) -> list[str]:
    """Put artifacts back that a dead process moved aside in `folder`; return their names. For readers: nothing is removed."""
    names: list[str] = []
    try:
        found = sorted(entry.name for entry in os.scandir(folder) if entry.name.startswith(REPLACED))
        for path in (folder / name for name in found):
            with _left(path, DAY_S) as left:
                names += _put_back(path) if left else []
    except OSError:
        return names  # a folder that may be read only, or went meanwhile
    return names


def remove_tree(path: Path) -> None:
    """Remove a folder with all in it, or a link or file; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            return


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that holds nothing; any other stays."""
    try:
        folder.rmdir()
    except OSError:
        return  # something is kept there, or it is gone


def _remove_unheld(path: Path) -> None:
    try:
        handle = hold(path, os.O_WRONLY)
        if handle is not None:
            path.unlink(missing_ok=True)
            os.close(handle)
    except (OSError, NoLocksError):
        return  # gone meanwhile, not ours to write, or nobody can tell


def _put_back(aside: Path) -> list[str]:
    names = []
    for old in aside.iterdir():
        target = aside.parent / old.name
        if not os.path.lexists(target):
            rename_new(old, target)
            sync_folder(aside.parent)
            names.append(old.name)
    return names


@contextmanager
def _left(path: Path, older_than_s: float) -> Iterator[bool]:
    """Yield whether a folder was left by a dead process; nobody else clears it away at the same time."""
    handle = None
    machine = re.fullmatch(r"\.[a-z]+-([0-9a-f]{8})-.*", path.name)
    try:
        handle = hold(path)
        foreign = machine is not None and machine[1] != this_machine()
        left = handle is not None and (not foreign or _idle_s(path) > older_than_s)
    except NoLocksError:
        left = _idle_s(path) > older_than_s
    except OSError:
        left = False  # gone meanwhile, or not a folder
    try:
        yield left
    finally:
        if handle is not None:
            os.close(handle)


def _idle_s(folder: Path) -> float:
    times = [path.lstat().st_mtime for path in (folder, *folder.rglob("*")) if os.path.lexists(path)]
    return time.time() - max(times, default=time.time())
