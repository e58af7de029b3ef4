"""Which findings do all checks together give on a set of files?

Checks on one model's numbers first, then those that need several: of one file, where a table ranks them, or of one task
anywhere in the set.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from quantkit.audit import (
    check_answers,
    check_certainty,
    check_comparable,
    check_floors,
    check_labels,
    check_origin,
    check_values,
)
from quantkit.audit.derived import coverage_of, empty_share
from quantkit.audit.differences import Difference
from quantkit.audit.facts import Claim, Finding, Measured, listed

ALONE: tuple[Callable[[Measured], Iterator[Finding]], ...] = (
    check_values.destroyed,
    check_values.refused,
    check_values.not_a_count,
    check_values.rows_disagree,
    check_values.speed,
    check_answers.silent,
    check_answers.coverage,
    check_answers.degenerate,
    check_answers.marked,
    check_labels.measured_bits,
    check_certainty.uncertain,
    check_certainty.standard_errors,
    check_comparable.limited,
    check_origin.overlap,
    check_origin.seed,
)
ORDER = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was found."""

    findings: tuple[Finding, ...]
    differences: tuple[Difference, ...]
    """Each model of a task against the best."""


def find_faults(measured: Sequence[Measured], claims: Mapping[str, Claim]) -> Audit:
    """Run every check; `claims` says what the models' names promise, for those whose names promise anything."""
    found = [finding for item in measured for finding in check_values.impossible(item)]
    measured = [check_values.possible(item) for item in informed(measured)]
    floors = check_floors.known_floors(measured)
    for item in measured:
        for check in ALONE:
            found += check(item)
        found += check_floors.floor(item, floors)
        found += check_labels.label(item, claims)
    for group in _groups(measured, lambda item: (item.file,)):
        found += check_labels.all_unquantized(group, claims)
    for group in _groups(measured, lambda item: (item.file, item.task)):
        found += check_answers.silent_speed(group)
        found += check_answers.silent_leader(group)
        found += check_answers.unexplained_speed(group)
        found += check_labels.memory(group, claims)
    differences: list[Difference] = []
    for group in _groups(measured, lambda item: (item.source, item.task)):
        found += check_labels.merges(group, claims)
        for part in _by_place(group):
            found += check_comparable.settings_differ(part)
            found += check_comparable.metrics_differ(part)
            same = _once(part)
            more, noise = check_certainty.within_noise(same) if len({item.n for item in same}) == 1 else ([], [])
            differences += more
            found += noise
    found += check_comparable.repeats(measured)
    return Audit(findings=ordered(joined(found)), differences=tuple(differences))


def informed(measured: Sequence[Measured]) -> list[Measured]:
    """Return what was measured, a study's summaries with what the answers of the same model and task, in another file, show."""
    spoken = {(item.model, item.task, item.n): item for item in measured if item.source == "study" and item.rows}
    whole = []
    for item in measured:
        answers = None if item.rows or item.source != "study" else spoken.get((item.model, item.task, item.n))
        if answers is not None:
            empty = empty_share(answers) if item.empty is None else item.empty
            parsed = coverage_of(answers) if item.coverage is None else item.coverage
            item = replace(item, empty=empty, coverage=parsed)  # noqa: PLW2901
        whole.append(item)
    return whole


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings, the worst first."""
    return tuple(sorted(findings, key=lambda item: ORDER[item.severity]))


def joined(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings with those that say the same of several models of a file put into one."""
    groups: dict[tuple[str, ...], list[Finding]] = defaultdict(list)
    for item in findings:
        groups[item.severity, item.check, item.file, item.where, item.found, item.needed].append(item)
    whole = []
    for same in groups.values():
        whole.append(replace(same[0], model=listed(item.model for item in same)))
    return whole


def _groups(measured: Sequence[Measured], key: Callable[[Measured], tuple[str, ...]]) -> list[list[Measured]]:
    groups: dict[tuple[str, ...], list[Measured]] = defaultdict(list)
    for item in measured:
        groups[key(item)].append(item)
    return list(groups.values())


def _by_place(group: list[Measured]) -> list[list[Measured]]:
    """Return a study's group by file, others whole: a study's task names mean one thing within a file only."""
    return _groups(group, lambda item: (item.file,)) if group and group[0].source == "study" else [group]


def _once(group: list[Measured]) -> list[Measured]:
    """Return each model once: by artifact where it has a hash, by name otherwise."""
    return list({(item.model, item.artifact): item for item in group}.values())
