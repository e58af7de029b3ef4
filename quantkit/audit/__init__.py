"""Which numbers in a result file cannot be believed, and why?

`read_paths` turns files of quantkit, of lm-eval and of other evaluations into one neutral form, `find_faults` runs every
check over it. Both work on plain JSON and CSV without torch. The alternative, a set of rules per file format, would find a
silent model in our own files and praise it in everybody else's.
"""

from quantkit.audit.facts import Claim, Finding, Measured, Number, Reading, Row
from quantkit.audit.faults import Audit, find_faults
from quantkit.audit.reading import read_paths

__all__ = ["Audit", "Claim", "Finding", "Measured", "Number", "Reading", "Row", "find_faults", "read_paths"]
