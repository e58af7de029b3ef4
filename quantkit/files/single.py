"""How is one file replaced, so that it is the old one or the new one at any moment?

Written under `.NAME.quantkit-tmp` beside it, made durable, renamed. The writer holds a lock on the temporary file, so one that
nobody holds was left by a dead process, and the next writer of the same file takes it away. A random temporary name for each
writer, the usual way, leaves one more file behind at each kill, and nobody knows when it may go.
"""

import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError, WriteError
from quantkit.files.renaming import make_folders, sync_folder
from quantkit.locks import NoLocksError, hold

TEMPORARY = ".quantkit-tmp"
LONGEST_WAIT_S = 10.0
"""For another process that is writing the same file, before a temporary name of one's own is taken."""
_LOOK_EVERY_S = 0.01
SURROGATE = re.compile("[\ud800-\udfff]")


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step.

    What stands for bytes of a file name that are not UTF-8 is written as the text of its escape.

    Raises:
        WriteError: it cannot be written; what stood there is untouched.
    """
    _replace(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, data: Any) -> None:
    """Replace `path` by `data` as JSON that diffs well: indented, keys in their order, non-finite numbers refused.

    Raises:
        WriteError: it cannot be written; what stood there is untouched.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    text = SURROGATE.sub(lambda found: rf"\\u{ord(found[0]):04x}", text)  # as text: strict readers refuse JSON's own escape
    write_text(path, text + "\n")


def read_text(path: Path, *, max_bytes: int) -> str:
    """Return the text of a file that somebody else wrote; a byte order mark is left out.

    Raises:
        UsageError: the file is missing, larger than `max_bytes` or not UTF-8.
    """
    try:
        if (size := path.stat().st_size) > max_bytes:
            raise UsageError(f"{path}: {size} bytes; at most {max_bytes} are read")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start}") from None


def read_json(path: Path, *, max_bytes: int = 64 * 1024 * 1024) -> Any:
    """Return the JSON data of a file.

    Raises:
        UsageError: the file is missing, larger than `max_bytes`, not UTF-8 or not JSON.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise UsageError(f"{path}: {path.stat().st_size} bytes; at most {max_bytes} are read as JSON")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid JSON: {error}") from None


def _replace(path: Path, data: bytes) -> None:
    try:
        make_folders(path.parent)
        handle, temporary = _temporary_for(path)
        with os.fdopen(handle, "wb") as stream:
            try:  # inside: while the lock is held, nobody takes this file for a dead process's
                stream.write(data)
                stream.flush()
                os.fchmod(handle, 0o644)
                os.fsync(handle)
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise WriteError.of(error, f"{path}: could not be written", "what stood there before is untouched") from error
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise WriteError.of(error, f"{path}: written, but the disk did not confirm it", "it may be lost again") from error


def _temporary_for(path: Path) -> tuple[int, Path]:
    """Return an open new file, locked while it is open, and its path."""
    name = path.with_name(f".{path.name}{TEMPORARY}")
    give_up = time.monotonic() + LONGEST_WAIT_S
    try:
        while time.monotonic() < give_up:
            handle = _held(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            if handle is not None:
                return handle, name
            dead = _held(name, os.O_WRONLY)
            if dead is None:
                time.sleep(_LOOK_EVERY_S)
                continue
            name.unlink(missing_ok=True)
            os.close(dead)
    except NoLocksError:
        name.unlink(missing_ok=True)
    handle, own = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
    return handle, Path(own)


def _held(name: Path, flags: int) -> int | None:
    try:
        return hold(name, flags)
    except (FileExistsError, FileNotFoundError):
        return None
