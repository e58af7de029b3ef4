"""How does a verb write a page or table that was asked for by name? Refused early, written in one step, told with its size."""

from pathlib import Path

from quantkit import console
from quantkit.errors import UsageError
from quantkit.files import refuse_existing, write_text


def refuse_unwritable(target: Path, *, overwrite: bool) -> None:
    """Raise `UsageError` where `target` is a folder, or a file that may not be replaced: before any work is done for it."""
    if target.is_dir():
        raise UsageError(f"{target} is a folder; a file name is wanted")
    refuse_existing(target, overwrite=overwrite)


def write_result(target: Path, text: str) -> None:
    """Write a file and say so.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        write_text(target, text)
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror or error}") from None
    console.say(f"written: {target} ({console.format_bytes(target.stat().st_size)})")
