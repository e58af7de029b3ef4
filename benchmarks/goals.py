"""What must a benchmark show, how sure is it, and what does its command say to the shell?

Every benchmark is one command: tables on stderr, one JSON object to `--json FILE` or stdout, and exit code 3 when a goal is
missed. Goals are part of the result, so that a file of numbers also says what was wanted of them.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

Row = TypeVar("Row")
RESAMPLES = 1000


@dataclass(frozen=True)
class Goal:
    """One thing that must hold, with what was found."""

    name: str
    wanted: str
    found: str
    met: bool


def interval(rows: Sequence[Row], statistic: Callable[[Sequence[Row]], float], *, seed: int) -> dict[str, float]:
    """Return a statistic of rows with its 95 % percentile interval over rows drawn with replacement."""
    chance = random.Random(seed)
    drawn = sorted(statistic(chance.choices(rows, k=len(rows))) for _ in range(RESAMPLES))
    low, high = (drawn[round(share * (RESAMPLES - 1))] for share in (0.025, 0.975))
    return {"value": statistic(rows), "low": low, "high": high}


def finish(benchmark: str, found: Mapping[str, Any], goals: Sequence[Goal], json_file: str | None) -> int:
    """Print the goals, write everything, and return the exit code."""
    from quantkit.console import say, table
    from quantkit.files import write_json

    table("Goals", ["goal", "wanted", "found", ""], [[g.name, g.wanted, g.found, "met" if g.met else "MISSED"] for g in goals])
    result = {"benchmark": benchmark, **found, "goals": [asdict(goal) for goal in goals]}
    if json_file is None:
        print(json.dumps(result, indent=2))
    else:
        write_json(Path(json_file), result)
        say(f"written to {json_file}")
    return 0 if all(goal.met for goal in goals) else 3
