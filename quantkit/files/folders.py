"""How does a folder of files become an artifact in one step, also where another one stands?

It is filled under a hidden name beside the target, gets its manifest, and takes the target's name in one rename: a new name
only where nothing has it, an old one by exchanging the two. Removing the old folder first would leave a moment with neither.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from quantkit.errors import UsageError, WriteError
from quantkit.files.leftovers import (
    MAKING,
    REMOVING,
    REPLACED,
    WRITING,
    remove_if_empty,
    remove_leftovers,
    remove_tree,
    temporary_folder,
)
from quantkit.files.manifest import write_manifest
from quantkit.files.renaming import exchange, make_folders, rename_new, sync_folder
from quantkit.locks import Lock, NoLocksError

LONGEST_NAME_BYTES = 255


@contextmanager
def new_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on success it gets a manifest and becomes `target` in one rename.

    On any error the temporary folder is removed and what stood at `target` is untouched. What dead processes left beside
    `target` is cleared away first.

    Raises:
        UsageError: `target` exists and `overwrite` is off, or its parent cannot be written.
        WriteError: a file could not be written, e.g. because the disk is full.
    """
    remove_leftovers(target.parent)
    refuse_existing(target, overwrite=overwrite)
    with ExitStack() as stack:
        try:
            make_folders(target.parent)
            temporary = stack.enter_context(temporary_folder(target.parent, WRITING))
        except OSError as error:
            raise UsageError(f"{target.parent}: cannot be written: {error.strerror or error}") from None
        try:
            yield temporary
            write_manifest(temporary)
            temporary.chmod(0o755)
            _publish(temporary, target, overwrite=overwrite)
        except Exception as error:
            if not _is_of_the_disk(error):
                raise
            raise WriteError.of(error, f"{target}: could not be written", "nothing was left behind") from error
        finally:
            remove_tree(temporary)  # what could not be finished, or the folder that was replaced


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Raise `UsageError` when `target` is there and may not be replaced."""
    if os.path.lexists(target) and not overwrite:
        other = "file name" if target.is_file() else "output folder"
        raise UsageError(f"{target} exists; choose another {other} or pass --overwrite to replace it")


@contextmanager
def making(target: Path, *, overwrite: bool = False) -> Iterator[None]:
    """Hold a name while a run is at its artifact, so that two runs do not find out at the end that they made the same one.

    Raises:
        UsageError: `target` exists and `overwrite` is off, its parent cannot be written, or another process is at it.
    """
    remove_leftovers(target.parent)
    refuse_existing(target, overwrite=overwrite)
    missing = [path for path in target.parents if not path.exists()]
    name = os.fsencode(f".{target.name}")[: LONGEST_NAME_BYTES - len(MAKING)]
    lock = Lock(target.parent / (os.fsdecode(name) + MAKING))
    try:
        held = lock.acquire()
    except NoLocksError:
        held = True  # two runs of one name then meet at the end, where one is refused
    if not held:
        raise UsageError(f"{target}: another process is making it right now; wait for it, or choose another name")
    try:
        refuse_existing(target, overwrite=overwrite)
        yield
    finally:
        lock.release()
        for path in missing:
            remove_if_empty(path)  # where nothing came of the run, its folders are not left behind either


def remove_folder(folder: Path) -> None:
    """Remove a finished folder: it is gone in one step, also for whoever looks while its files are being removed.

    Raises:
        WriteError: it cannot be taken away; it is whole then.
    """
    aside = folder.with_name(f"{REMOVING}{secrets.token_hex(4)}")
    try:
        folder.rename(aside)
        sync_folder(folder.parent)
    except OSError as error:
        raise WriteError.of(error, f"{folder}: could not be removed", "it is as it was") from error
    remove_tree(aside)


def remove_work(folder: Path) -> None:
    """Remove a folder of intermediate results, if it is there, and the one above it, if nothing else stands in that.

    Raises:
        WriteError: it cannot be taken away; it is whole then.
    """
    if folder.is_dir():
        remove_folder(folder)
    remove_leftovers(folder.parent)
    remove_if_empty(folder.parent)


def _is_of_the_disk(error: Exception) -> bool:
    """Whether writing failed; libraries in Rust tell it as a SafetensorError or a bare Exception that ends in a number."""
    return isinstance(error, OSError) or type(error).__name__ == "SafetensorError" or "(os error " in str(error)


def _publish(temporary: Path, target: Path, *, overwrite: bool) -> None:
    """Give a whole folder its name; what was there under it stands at `temporary` afterwards, or is gone."""
    if not os.path.lexists(target):
        try:
            rename_new(temporary, target)
        except FileExistsError:
            pass  # it came up in this very moment
        else:
            _confirm(target, back_to=temporary)
            return
    refuse_existing(target, overwrite=overwrite)
    if exchange(temporary, target):
        _confirm(target, exchanged_with=temporary)
    else:
        _replace_in_two_steps(temporary, target)


def _confirm(target: Path, *, back_to: Path | None = None, exchanged_with: Path | None = None) -> None:
    """Make a rename durable, or take it back."""
    try:
        sync_folder(target.parent)
    except OSError:
        if exchanged_with is not None:
            exchange(exchanged_with, target)
        elif back_to is not None:
            target.rename(back_to)
        raise


def _replace_in_two_steps(temporary: Path, target: Path) -> None:
    """Move the old folder aside and the new one in; after a kill between the two, `remove_leftovers` puts the old one back."""
    with temporary_folder(target.parent, REPLACED) as aside:
        old = aside / target.name
        try:
            target.rename(old)
            temporary.rename(target)
            sync_folder(target.parent)
        except BaseException:
            if os.path.lexists(old):
                if os.path.lexists(target):
                    target.rename(temporary)
                old.rename(target)
            aside.rmdir()
            raise
        remove_tree(aside)
