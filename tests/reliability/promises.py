"""Which promises are there, and how hard is each tried?"""

import os

PROMISES = {
    "R1": "kill points survived",
    "R2": "corruptions of a checkpoint found and recovered",
    "R3": "interrupted and resumed runs that are bit-equal",
    "R4": "hostile inputs refused in one line",
    "R5": "names and specs that parse back",
    "R6": "registry updates under fire, kept or reported",
    "R7": "disk-full points with the previous artifact intact",
    "R8": "faults in training data found before step 1",
    "R9": "injected NaNs stopped at their step",
    "R10": "merge faults refused",
    "R11": "degenerate predictors flagged, healthy ones not",
    "R12": "broken plugins contained and named",
    "R13": "exploit files that ran or read nothing",
    "R14": "the demo without a network",
}
FULL = os.environ.get("QUANTKIT_RELIABILITY") == "full"


def amount(quick: int, full: int) -> int:
    """Return how many of something to try: few in the default tests, all in `make reliability`."""
    return full if FULL else quick
