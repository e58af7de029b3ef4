"""How does a name change from the old to the new in one step, and stay changed when the power fails?

Linux can exchange two names (`renameat2` with RENAME_EXCHANGE), so a folder is replaced without a moment in which neither is
there; two renames, the portable way, have such a moment. A rename outlives a power failure only when the files were made
durable before it and the folder that holds the name after it.
"""

import ctypes
import errno
import os
import sys
from pathlib import Path

_NOREPLACE, _EXCHANGE = 1, 2
_HERE = -100
"""AT_FDCWD: paths are relative to the working folder."""
_UNKNOWN = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}


def exchange(one: Path, other: Path) -> bool:
    """Swap what stands at two paths, in one step; False where this system or file system cannot.

    Raises:
        OSError: one of them is not there, or may not be renamed.
    """
    return _renameat2(one, other, _EXCHANGE)


def rename_new(source: Path, target: Path) -> None:
    """Rename a file or folder to a name that nothing has.

    Raises:
        FileExistsError: something has it, also where it came up in this very moment.
        OSError: it cannot be renamed.
    """
    if _renameat2(source, target, _NOREPLACE):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)  # a folder never replaces one that holds something


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: what was created, renamed or removed in it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNKNOWN:  # some file systems keep no such promise for folders, and say so
            raise
    finally:
        os.close(handle)


def make_folders(folder: Path) -> None:
    """Create a folder and those above it that are missing, durably."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_HERE, os.fsencode(source), _HERE, os.fsencode(target), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))
