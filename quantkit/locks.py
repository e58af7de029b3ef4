"""Who is at work on this, if anybody? A lock that the kernel takes away from a process when it dies.

A file with a process id in it is the usual way; it holds for ever after a crash, or is taken from a living owner whose id looks
dead because it runs on another machine. An open file's lock (flock) needs no cleaning up, and may be handed to a child process,
which then holds it for as long as it lives.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantkit.errors import UsageError


class NoLocksError(UsageError):
    """This system, or this file system, has no such locks."""


class Lock:
    """A lock on a path; the file is there while somebody holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    @property
    def handle(self) -> int:
        """Return the open file, to be inherited by a child process that is to hold the lock, too."""
        if self._handle is None:
            raise UsageError(f"{self.path}: the lock is not held")
        return self._handle

    def acquire(self, *, wait: bool = False) -> bool:
        """Take the lock; return whether it is held now. `wait` blocks until it is free.

        Raises:
            UsageError: the folder cannot be written.
            NoLocksError: there are no such locks here.
        """
        while True:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise UsageError(f"{self.path}: cannot be written: {error.strerror or error}") from None
            try:
                held = _flock(handle, wait=wait)
            except BaseException:
                os.close(handle)
                self.path.unlink(missing_ok=True)
                raise
            if held and _stands_at(handle, self.path):
                self._handle = handle
                return True
            os.close(handle)
            if not held:
                return False  # else its last holder removed it between our open and our lock

    def release(self) -> None:
        """Let go; a child process that inherited the lock keeps it, and the file then stays."""
        if self._handle is None:
            return
        os.close(self._handle)
        self._handle = None
        last = Lock(self.path)
        if last.acquire():
            self.path.unlink(missing_ok=True)
            os.close(last.handle)


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Yield whether the lock could be taken at once; it is held until the end of the block."""
    lock = Lock(path)
    held = lock.acquire()
    try:
        yield held
    finally:
        lock.release()


def is_free(path: Path) -> bool:
    """Say whether nobody holds the lock."""
    with try_lock(path) as held:
        return held


def wait_until_free(path: Path) -> None:
    """Return when nobody holds the lock."""
    lock = Lock(path)
    lock.acquire(wait=True)
    lock.release()


def hold(path: Path, flags: int = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)) -> int | None:
    """Open and lock a file or (by default) a folder itself, never through a link; None while another holds it.

    The lock goes with the open file, which the caller closes, also when the path is renamed.

    Raises:
        NoLocksError: there are no such locks here.
        OSError: it cannot be opened with these flags, or is gone.
    """
    handle = os.open(path, flags | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o644)
    try:
        held = _flock(handle, wait=False)
        if held and not _stands_at(handle, path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    except BaseException:
        os.close(handle)
        raise
    if not held:
        os.close(handle)
    return handle if held else None


def _flock(handle: int, *, wait: bool) -> bool:
    try:
        import fcntl
    except ImportError:
        raise NoLocksError("work cannot be shared between processes here: this system has no flock") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise NoLocksError(f"work cannot be shared between processes on this file system: {error.strerror or error}") from None
    return True


def _stands_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
