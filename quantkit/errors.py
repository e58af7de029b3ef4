"""Which errors does quantkit raise, and with which exit code does the command end?

One family, so that the command line can print any of them as one line without a traceback. The alternative, letting
`KeyError` and `OSError` of the libraries below reach the user, names neither what was found nor what to do.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class QuantkitError(Exception):
    """A run failed; the text says what was found, where, and what to do. Exit code 1."""

    exit_code = 1


class UsageError(QuantkitError):
    """What was asked for cannot be done as asked: settings, data, names, plugins. Exit code 2."""

    exit_code = 2


class VerificationError(QuantkitError):
    """Something was measured and is not what it was said to be. Exit code 3."""

    exit_code = 3


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
