"""How is a wrong flag of a small verb told? In one line, as the verbs with a run's settings tell it.

tyro reads these verbs' flags and prints a box when it cannot. Its words are kept, its frame and the help text within are not.
Verbs that take a run's settings read flags themselves (`quantkit_tools.flags`); for a handful of flags that would be a second
parser for nothing.
"""

import io
from contextlib import redirect_stderr
from dataclasses import fields
from typing import Any, TypeVar

import tyro

from quantkit.errors import UsageError
from quantkit_tools.field_help import with_help
from quantkit_tools.folder_flag import NAMES, with_own_folder_flag

SIDES = "│| "
RULE = set("─-╰╯+")
HINT = "Perhaps you meant:"
Flags = TypeVar("Flags")


def read_small_flags(kind: type[Flags], verb: str, arguments: list[str]) -> Flags:
    """Return the flags of a verb; `--help` prints them and ends the process.

    Raises:
        UsageError: what is wrong with which flag, and where help is.
    """
    said = io.StringIO()
    known: Any = kind
    folder = next((item.name for item in fields(known) if item.name in NAMES), None)
    words = arguments if folder is None else with_own_folder_flag(arguments, folder)
    try:
        with redirect_stderr(said):
            given = tyro.cli(with_help(kind), prog=f"quantkit {verb}", args=words, config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as stop:
        if stop.code != UsageError.exit_code:
            raise
        raise UsageError(f"{told(said.getvalue())}; quantkit {verb} --help lists what there is") from None
    return kind(**{item.name: getattr(given, item.name) for item in fields(kind)})  # type: ignore[arg-type]


def told(box: str) -> str:
    """Return what a box of tyro's says is wrong, and the flag it takes to be meant.

    >>> told("╭─ Unrecognized ─╮\\n│ No such: --x │\\n│ ──── │\\n│ Perhaps you meant: │\\n│     --y INT │\\n╰────╯")
    'No such: --x. Did you mean --y?'
    """
    _title, *lines = [text for line in box.splitlines() if (text := line.strip(SIDES))]
    while lines and set(lines[0]) <= RULE:  # where the frame is written in ASCII, one stands below the title too
        del lines[0]
    end = next((at for at, line in enumerate(lines) if set(line) <= RULE), len(lines))
    wrong = " ".join(lines[:end]).removesuffix(" (required)").rstrip(".")
    hint = lines[lines.index(HINT) + 1].split()[0] if HINT in lines else ""
    return f"{wrong}. Did you mean {hint}?" if hint else wrong
