"""Which versions of libraries are known to break together? A data file, each entry with a source.

Entries are stated as versions, not as code that looks for a missing name: a pair can be checked without importing either, and
whoever meets a new one adds lines to `known_bad.toml`. What pip itself refuses (a library's own pins) is not kept there.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from packaging.utils import canonicalize_name

from quantkit.doctor.findings import Finding, Severity
from quantkit.doctor.libraries import satisfies

DATA = Path(__file__).with_name("known_bad.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class BadPair:
    """Versions that break together, or one that breaks on some processors."""

    packages: Mapping[str, str]
    """Package to specifier; all must be installed and fit."""
    severity: Severity
    what: str
    advice: str
    source: str
    """A public address, or how it was measured here, with versions."""
    flags: tuple[str, ...] = ()
    """Processor flags, as Linux writes them, that the trouble needs."""
    without_gpu: bool = False
    """Whether it concerns machines without a GPU only."""


@cache
def known_bad(path: Path = DATA) -> tuple[BadPair, ...]:
    """Return the entries of the data file."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["pair"]
    return tuple(BadPair(**(entry | {"flags": tuple(entry.get("flags", ()))})) for entry in entries)


def judge_pairs(
    versions: Mapping[str, str], *, flags: frozenset[str], has_gpu: bool, pairs: tuple[BadPair, ...] | None = None
) -> list[Finding]:
    """Return the entries that apply to these versions (package to version) on this processor."""
    here = {canonicalize_name(name): version for name, version in versions.items()}
    return [
        Finding(
            severity=pair.severity,
            subject=", ".join(f"{name} {here[canonicalize_name(name)]}" for name in pair.packages),
            what=pair.what,
            advice=pair.advice,
            source=pair.source,
        )
        for pair in (known_bad() if pairs is None else pairs)
        if all(
            canonicalize_name(name) in here and satisfies(here[canonicalize_name(name)], specifier)
            for name, specifier in pair.packages.items()
        )
        and flags.issuperset(pair.flags)
        and not (pair.without_gpu and has_gpu)
    ]
