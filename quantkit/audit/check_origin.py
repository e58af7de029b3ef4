"""Where do the answers come from: rows the model was trained on, a draw that cannot be repeated?"""

import math
from collections.abc import Iterator

from quantkit.audit.facts import Finding, Measured, Severity

MUCH = 0.05
"""Share of test rows in the training data from which on the number cannot stand."""


def overlap(measured: Measured) -> Iterator[Finding]:
    """Find test rows that stand in the training data, where the file says so."""
    found = measured.overlap
    if not found or not math.isfinite(found) or found < 0:
        return
    count = found if found >= 1 or not measured.n else found * measured.n
    share = None if not measured.n else count / measured.n
    of = f" of {measured.n}" if measured.n else ""
    said = f"{count:g}{of} test questions also stand in the training data"
    severity: Severity = "error" if share is not None and share >= MUCH else "warning"
    yield measured.finding(severity, "overlap", "rows", said, "a score over the other rows")


def seed(measured: Measured) -> Iterator[Finding]:
    """Find draws that cannot be repeated."""
    if measured.greedy is False:
        said = f"answers were drawn at random, {'and no seed is recorded' if measured.seed is None else 'once'}"
        yield measured.finding("warning", "sampling", "decoding", said, "greedy decoding, or several seeds and their spread")
    elif measured.seed is None and measured.source == "study" and measured.greedy is None:
        said = "neither a seed nor greedy decoding is recorded"
        yield measured.finding("warning", "no seed", "seed", said, "how rows were drawn and answers decoded")
