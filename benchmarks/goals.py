"""What must a benchmark show, how sure is it, and what does its command say to the shell?

Every benchmark is one command with `--quick` and `--json FILE`: tables on stderr, one JSON object to the file or stdout, and
exit code 3 when a goal does not hold. Goals are part of the result, so that a file of numbers also says what was wanted of
them. What is only reported stands beside them with its interval and a verdict in words.
"""

import json
import random
from argparse import ArgumentParser
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
    value: float | str
    """What was found."""
    goal: str
    """What was wanted of it, e.g. `at most 0.5`."""
    holds: bool


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags that every benchmark takes."""
    parser.add_argument("--quick", action="store_true", help="a model of 0.6 M parameters instead of SmolLM2-135M")
    parser.add_argument("--json", metavar="FILE", help="write the results there instead of on stdout")


def interval(rows: Sequence[Row], statistic: Callable[[Sequence[Row]], float], *, seed: int) -> dict[str, float]:
    """Return a statistic of rows with its 95 % percentile interval over rows drawn with replacement."""
    chance = random.Random(seed)
    drawn = sorted(statistic(chance.choices(rows, k=len(rows))) for _ in range(RESAMPLES))
    low, high = (drawn[round(share * (RESAMPLES - 1))] for share in (0.025, 0.975))
    return {"value": statistic(rows), "low": low, "high": high}


def paired(one: Sequence[tuple[float, int]], other: Sequence[tuple[float, int]], *, seed: int) -> dict[str, Any]:
    """Compare summed losses and token counts of the same rows: nats per token by which `one` differs, with a verdict.

    >>> same = [(2.0, 1), (3.0, 2)]
    >>> paired(same, same, seed=0)["verdict"]
    'no difference shown'
    """
    rows = [(mine[0] - theirs[0], theirs[1]) for mine, theirs in zip(one, other, strict=True)]
    found = interval(rows, lambda chosen: sum(a for a, _ in chosen) / sum(b for _, b in chosen), seed=seed)
    verdict = "lower" if found["high"] < 0 else "higher" if found["low"] > 0 else "no difference shown"
    return found | {"verdict": verdict}


def signed(found: Mapping[str, Any]) -> str:
    """Return a difference with its interval and verdict as one phrase.

    >>> signed({"value": -0.12, "low": -0.2, "high": -0.01, "verdict": "lower"})
    '-0.1200 (-0.2000 to -0.0100): lower'
    """
    return f"{found['value']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f}): {found['verdict']}"


def finish(benchmark: str, found: Mapping[str, Any], goals: Sequence[Goal], json_file: str | None) -> int:
    """Print the goals, write everything, and return the exit code: 0 when all goals hold, else 3."""
    from quantkit.console import say, table
    from quantkit.files import write_json

    rows = [[goal.name, _short(goal.value), goal.goal, "holds" if goal.holds else "LOST"] for goal in goals]
    table("Goals", ["goal", "found", "wanted", ""], rows)
    result = {"benchmark": benchmark, **found, "goals": [asdict(goal) for goal in goals]}
    if json_file is None:
        print(json.dumps(result, indent=2))
    else:
        write_json(Path(json_file), result)
        say(f"written to {json_file}")
    return 0 if all(goal.holds for goal in goals) else 3


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
