"""Which rows go into one pack, so that packs are nearly full and no row is cut?

Best fit, longest first: each row goes into the fullest pack that still holds it. Rows stay whole: cutting a long stream into
equal pieces, the alternative, tears responses from their prompts.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence


def packs(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return the numbers of the rows of each pack; a row longer than `capacity` tokens has a pack of its own.

    >>> packs([5, 2, 4, 3, 9], 7)
    [[4], [0, 1], [2, 3]]
    """
    made: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens free, number of the pack), smallest first
    for row in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        at = bisect_left(room, (lengths[row], -1))
        if at == len(room):
            made.append([row])
            insort(room, (capacity - lengths[row], len(made) - 1))
        else:
            free, number = room.pop(at)
            made[number].append(row)
            insort(room, (free - lengths[row], number))
    return made
