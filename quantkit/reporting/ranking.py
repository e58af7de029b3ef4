"""Which result is better than which, and which are not told apart?

A place is a range: what the 95 % intervals allow. Overlapping intervals are shown as a tie, although a paired comparison on the
same rows may still tell them apart; the other way round, numbering bare values from 1, makes winners out of noise. A
result at its floor, or with degenerate texts, has no place and stands last.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from quantkit.reporting.facts import Key, Row

Cost = Callable[[Row], float | None]


@dataclass(frozen=True, slots=True)
class Board:
    """The rows of one task, metric, data set, device and reference, best first; only these are compared with each other."""

    title: str
    rows: tuple[Row, ...]

    @property
    def first(self) -> Row:
        """Return a row for what all of them share."""
        return self.rows[0]


def boards(rows: Iterable[Row], *, order: Sequence[str] = ()) -> list[Board]:
    """Return the rows by what makes them comparable, ranked; tasks in the order named, then by name."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.board, []).append(row)
    place = {task: index for index, task in enumerate(order)}
    keys = sorted(groups, key=lambda key: (place.get(key[0], len(place)), key))
    return [Board(_title(key, keys), ranked(groups[key])) for key in keys]


def _title(key: Key, keys: Sequence[Key]) -> str:
    """Return the task's name, with what tells this board from others of the same task."""
    same = [other for other in keys if other[0] == key[0]]
    words = ((1, key[1]), (2, f"rows {key[2][:8]}"), (3, key[3]), (4, f"from {key[4]}"))
    told = [word for at, word in words if len({k[at] for k in same}) > 1]
    return " · ".join([key[0], *told])


def ranked(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return comparable rows, best first, with the places that their intervals allow; those without a place last."""
    fair = [row for row in rows if row.is_ranked]
    placed = []
    for row in rows:
        if not row.is_ranked:
            placed.append(row)
            continue
        above = sum(clearly_better(other, row) for other in fair)
        below = sum(clearly_better(row, other) for other in fair)
        placed.append(replace(row, rank_low=1 + above, rank_high=len(fair) - below))
    return tuple(sorted(placed, key=_order))


def _order(row: Row) -> tuple[bool, float, str]:
    return not row.is_ranked, -row.value if row.higher_is_better else row.value, row.name


def clearly_better(one: Row, other: Row) -> bool:
    """Say whether one row's interval lies wholly beyond another's."""
    return one.low > other.high if one.higher_is_better else one.high < other.low


def front(rows: Sequence[Row], cost: Cost, *, less_is_better: bool) -> list[Row]:
    """Return the rows with a place and a cost that no other beats in score and cost at once, by cost."""
    fair = [(row, known) for row in rows if row.is_ranked and (known := cost(row)) is not None]

    def beats(one: tuple[Row, float], other: tuple[Row, float]) -> bool:
        quality = one[0].value - other[0].value if one[0].higher_is_better else other[0].value - one[0].value
        saved = other[1] - one[1] if less_is_better else one[1] - other[1]
        return quality >= 0 and saved >= 0 and (quality > 0 or saved > 0)

    best = [item for item in fair if not any(beats(other, item) for other in fair)]
    return [row for row, _ in sorted(best, key=lambda item: item[1])]


def place_text(row: Row) -> str:
    """Return a row's place as text: `2`, `1–3` for a tie, nothing for one without a place."""
    if row.rank_low is None:
        return ""
    return str(row.rank_low) if row.rank_low == row.rank_high else f"{row.rank_low}–{row.rank_high}"
