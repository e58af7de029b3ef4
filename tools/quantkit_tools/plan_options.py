"""Which options of methods can stand where `quantkit plan` looks at all methods? Each that one of these knows, for those.

Refusing what NoQuant, the first of them, does not know would leave a matrix in which groups of 128 divide nothing without a way
to ask for groups of 64.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from quantkit.aliases import canonical
from quantkit.config import SETTINGS
from quantkit.errors import QuantkitError
from quantkit.layout import cell_text
from quantkit.methods import Methods
from quantkit.plan import Stage
from quantkit_tools.flags import FileFlags, read_flags


@dataclass(frozen=True, slots=True)
class SharedOption:
    """An option that was set for all methods, and who knows it."""

    name: str
    value: Any
    known_to: tuple[str, ...]
    unknown_to: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        known, unknown = list(self.known_to), list(self.unknown_to)
        return {"name": self.name, "value": self.value, "known_to": known, "unknown_to": unknown}

    @property
    def text(self) -> str:
        """Return to whom it applies."""
        others = f", not to {', '.join(self.unknown_to)}" if self.unknown_to else ""
        return f"{self.name} {cell_text(self.value)} applies to {', '.join(self.known_to)}{others}"


def methods_of_bases(methods: Methods) -> list[str]:
    """Return the methods that work on a base, before anything is trained."""
    return [name for name in methods.names if Stage.BASE in methods.info(name).stages]


def options_apart(words: Sequence[str], methods: Methods, kind: type[FileFlags]) -> tuple[list[str], list[SharedOption]]:
    """Return a command line's words without the options of methods that work on a base, and these options.

    Raises:
        UsageError: no method that knows an option takes its value.
    """
    names = methods_of_bases(methods)
    known = {item.name for name in names for item in fields(methods.info(name).options)} - SETTINGS
    rest: list[str] = []
    options: list[str] = []
    current = rest
    for word in words:
        if word.startswith("--"):
            flag = canonical(word[2:].partition("=")[0])
            current = options if {flag, flag.removeprefix("no_")} & known else rest
        current.append(word)
    given = read_flags(options, methods, kind, "plan")
    return rest, [_shared(canonical(flag.removeprefix("--")), value, methods, names) for flag, value in given.items()]


def options_of(shared: Sequence[SharedOption], method: str) -> Mapping[str, Any]:
    """Return the options that apply to a method."""
    return {option.name: option.value for option in shared if method in option.known_to}


def _shared(name: str, value: Any, methods: Methods, names: Sequence[str]) -> SharedOption:
    """Return an option with its value as a method converts it."""
    knows = [method for method in names if name in {item.name for item in fields(methods.info(method).options)}]
    refused: list[QuantkitError] = []
    for method in knows:
        try:
            value = getattr(methods.options(method, {name: value}), name)
        except QuantkitError as error:
            refused.append(error)
    if len(refused) == len(knows):
        raise refused[0]
    return SharedOption(name, value, tuple(knows), tuple(method for method in names if method not in knows))
