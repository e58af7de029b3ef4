"""How is each plot and table read, and what must not be concluded from it? One sentence per question, out of the rows shown."""

from collections.abc import Iterable, Sequence

from quantkit.reporting.curves import Curve
from quantkit.reporting.facts import Row
from quantkit.reporting.figures import Axis
from quantkit.reporting.ranking import Board, front

TABLE = (
    "Each line is one artifact on one task. Beside a score stands its 95 % interval; the small bar draws it, with a"
    " dashed tick at the best floor: what a predictor that understands nothing gets on the same rows. Place is what the"
    " intervals allow among the results of the same task that are not marked FLOOR (not clearly above it) or as"
    " degenerate; a range is a tie. Those have no place, and stay last however scores are sorted."
)
COMPARISONS = (
    "Each artifact minus the one it is compared with, row by row on the same rows. A difference counts as real where p, after"
    " Holm's correction for all pairs looked at, is below 0.05 and the interval leaves out zero; nobody who is marked wins."
    " Perplexities are compared as nats per token."
)
SAMPLES = (
    "Greedy answers to the same rows, as generated. Rows on which the artifacts disagree come first, then others, each in"
    " the order of the file: this shows differences and is no fair sample."
)
LOSS = (
    "Mean loss per supervised token of each optimizer step, on that step's own training rows: noisy, and not comparable"
    " between runs on different data. Open diamonds: loss on held-out rows before the first step and after the last."
    " Numbers are those of the artifacts."
)


def setting(rows: Sequence[Row]) -> str:
    """Return where and on what these rows were measured."""
    first = rows[0]
    device, dtype = _list(row.device for row in rows) or "an unrecorded device", _list(row.dtype for row in rows)
    parts = [
        f"{_list(str(row.n) for row in rows)} rows",
        f"on {device}",
        *([f"computing in {dtype}"] if dtype else []),
    ]
    if batches := _list(str(row.batch_size) for row in rows if row.batch_size):
        parts.append(f"{batches} prompts at a time")
    return f"Measured on {', '.join(parts)}; data {first.data_fingerprint[:12]}, seed {_list(str(row.seed) for row in rows)}"


def how_to_read(board: Board) -> str:
    """Return what the marks of a board's plots mean, and where and on what its rows were measured."""
    rows = board.rows
    said = [f"Bars are 95 % intervals ({_list(row.interval for row in rows)}); numbers name the artifacts."]
    if not all(row.is_ranked for row in rows):
        said.append("Hollow points are at their floor or degenerate, and never on a front.")
    if len({row.best_floor for row in rows}) == 1 and rows[0].best_floor is not None:
        said.append(f"The dotted line is the best floor ({rows[0].best_floor_name}).")
    return " ".join([*said, f"{setting(rows)}."])


def quality(board: Board, axis: Axis) -> str:
    """Return how to read a board's scores against a cost."""
    rows = [row for row in board.rows if axis.cost(row) is not None]
    best = front(rows, axis.cost, less_is_better=axis.less_is_better)
    better = ("up" if board.first.higher_is_better else "down") + " and " + ("left" if axis.less_is_better else "right")
    said = [f"Better is {better}."]
    unsure = "where bars overlap, the difference in score is not shown to be real."
    if not best:
        said.append("Every result is at its floor or degenerate, so there is no front: none of these is shown to be any good.")
    elif len(best) == 1:
        said.append(
            f"The front is one artifact, {best[0].number}: no other above its floor is better in score or in cost; {unsure}"
        )
    else:
        said.append(
            "The dashed line joins the Pareto front: no other artifact beats these in score and cost at once, by their values;"
            f" {unsure}"
        )
    return " ".join([*said, *_caveat(axis, rows)])


def _caveat(axis: Axis, rows: Sequence[Row]) -> list[str]:
    if axis.key == "memory":
        return [f"Memory is the peak while evaluating this task: {_list(row.peak_memory_of for row in rows)}."]
    if axis.key == "speed":
        return ["Speed holds for this machine, batch size and these answers; shorter answers are not faster ones."]
    adapters = [row for row in rows if row.kind == "adapter"]
    return ["The size of an adapter is its own files only; it needs its base besides."] if adapters else []


def not_drawn(axis: Axis) -> str:
    """Return why there is no plot against a cost."""
    why = "nothing was generated" if axis.key == "speed" else "it was not measured"
    return f"No plot against {axis.title}: {why}."


def loss(curves: Sequence[Curve]) -> str:
    """Return how to read the loss curves."""
    thinned = sorted({curve.steps_per_point for curve in curves if curve.steps_per_point > 1})
    return LOSS + (f" In long runs a point is the mean of {_list(str(n) for n in thinned)} steps." if thinned else "")


def _list(values: Iterable[str | None]) -> str:
    return ", ".join(dict.fromkeys(value for value in values if value))
