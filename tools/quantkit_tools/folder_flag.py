"""By which flag is the folder of artifacts named? By each of the words that verbs have for it, whichever the verb.

A verb's help shows one, which says what it does there: `--output-dir`, as in transformers, where a run is described, `--dst`
where one thing is made of another, `--registry` where what is there is looked at. Settings of run files and scripts, the
alternative, are read from a script's own constants, whose `ROOT` would be taken for one.
"""

from quantkit.errors import UsageError
from quantkit_registry.store import DEFAULT_ROOT

NAMES = ("registry", "output_dir", "root", "dst")
OF_RUNS = "output_dir"
"""The flag of a run's settings, where `artifacts` alone means the registry, wherever that is."""


def with_own_folder_flag(arguments: list[str], own: str) -> list[str]:
    """Return a command line with the folder named by the verb's `own` flag; each name keeps the folder it means elsewhere.

    >>> with_own_folder_flag(["adapter", "--root", "x"], "dst"), with_own_folder_flag(["--output_dir=x"], "registry")
    (['adapter', '--dst', 'x'], ['--registry=x'])

    Raises:
        UsageError: the folder is named by two of them.
    """
    found, first, literal = list[str](), "", False
    for word in arguments:
        spelling, equals, value = word.partition("=")
        name = spelling[2:].lower().replace("-", "_") if spelling.startswith("--") else ""
        if name not in NAMES:
            found.append(_as_folder(word) if literal else word)
            literal = False
            continue
        if first and name != first:
            raise UsageError(f"--{first.replace('_', '-')} and {spelling} both name the folder of artifacts; keep one")
        first = name
        literal = own == OF_RUNS != name
        said = f"--{own.replace('_', '-')}{equals}"
        found.append(said + (_as_folder(value) if literal and equals else value))
        literal = literal and not equals
    return found


def _as_folder(value: str) -> str:
    """Return a value such that a run takes it for the folder of that name, even where the registry is another."""
    return f"./{value}" if value == DEFAULT_ROOT else value
