"""Which errors does quantkit raise, and with which exit code does the command end?

One family, so that the command line can print any of them as one line without a traceback. The alternative, letting
`KeyError` and `OSError` of the libraries below reach the user, names neither what was found nor what to do.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Self


class QuantkitError(Exception):
    """A run failed; the text says what was found, where, and what to do. Exit code 1."""

    exit_code = 1


class UsageError(QuantkitError):
    """What was asked for cannot be done as asked: settings, data, names, plugins. Exit code 2."""

    exit_code = 2


class VerificationError(QuantkitError):
    """Something was measured and is not what it was said to be. Exit code 3."""

    exit_code = 3


class WriteError(QuantkitError, OSError):
    """Something could not be written, e.g. because the disk is full; `strerror` is the system's reason."""

    @classmethod
    def of(cls, error: BaseException, what: str, then: str) -> Self:
        """Return `WHAT: REASON; THEN` in one line, with the number and the words of the system's error."""
        found = cls(f"{what}: {_reason(error)}; {then}")
        found.errno, found.strerror = getattr(error, "errno", None), _reason(error)
        return found

    def __str__(self) -> str:
        """Return the whole line; an `OSError` would give number and words only."""
        return " ".join(map(str, self.args))


class UnknownMethodError(UsageError):
    """No usable plugin owns the method that was asked for."""


class PluginError(UsageError):
    """A plugin broke the contract of the hooks; the text names the plugin and its distribution."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the closest known word, or the empty string.

    >>> did_you_mean("lora_rr", ["lora_r", "seed"])
    " Did you mean 'lora_r'?"
    """
    by_lower = {name.lower(): str(name) for name in known}
    close = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""


def _reason(error: BaseException) -> str:
    said = getattr(error, "strerror", None)
    name = getattr(error, "filename", None)
    return " ".join(str(f"{said}: {name}" if said and name else said or error).split())[:300]
