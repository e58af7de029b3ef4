"""Which decoder blocks are computed again in the backward pass, and how is that written?

`none`, `selective` (of every block the MLP), `full` (every block), or numbers of blocks: `full:12,selective:8` is the first
twelve in full and the MLPs of the next eight. The first ones, because the backward pass reaches them last: by then the later
blocks have given back what they kept, so that what is computed again finds room; the last block alone would keep as much as it
gives. A list of block numbers, the alternative, says nothing more where blocks are alike. `auto` leaves it to the forecast.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from quantkit.adapters import ATTENTION
from quantkit.errors import UsageError

AUTO = "auto"
KINDS = ("full", "selective")
"""What of a block is computed again, in the order in which blocks get it."""
WORDS = (AUTO, "none", "selective", "full")
Kind = Literal["none", "selective", "full"]


@dataclass(frozen=True, slots=True)
class Recompute:
    """How many of a model's decoder blocks are computed again: the first `full` ones, and the MLPs of the next `selective`."""

    full: int = 0
    selective: int = 0

    @classmethod
    def of(cls, text: str, blocks: int) -> Self:
        """Return what a text means for a model of so many blocks; `auto`, which only a forecast can fill in, is none.

        >>> Recompute.of("full:2,selective:1", 4), Recompute.of("selective", 4)
        (Recompute(full=2, selective=1), Recompute(full=0, selective=4))

        Raises:
            UsageError: it names more blocks than there are, or is no such text.
        """
        counts = {name: blocks if count is None else count for name, count in _counts(text).items()}
        if sum(counts.values()) > blocks:
            raise UsageError(
                f"recompute {text} names {sum(counts.values())} decoder blocks, the model has {blocks}; name fewer, or say full"
            )
        return cls(**counts)

    def text(self, blocks: int) -> str:
        """Return how this is written for a model of so many blocks; `of` is its inverse.

        >>> Recompute(2, 1).text(4), Recompute(4).text(4), Recompute().text(4)
        ('full:2,selective:1', 'full', 'none')
        """
        counts = {name: getattr(self, name) for name in KINDS if getattr(self, name)}
        whole = next((name for name, count in counts.items() if count == blocks), None)
        return whole or ",".join(f"{name}:{count}" for name, count in counts.items()) or "none"

    def kind(self, number: int) -> Kind:
        """Return what is computed again of a block, by its number from 0."""
        return "full" if number < self.full else "selective" if number < self.full + self.selective else "none"

    def within(self, blocks: int) -> "Recompute":
        """Return what of this falls on the first so many blocks.

        >>> Recompute(2, 3).within(4)
        Recompute(full=2, selective=2)
        """
        full = min(self.full, blocks)
        return Recompute(full, min(self.selective, blocks - full))


def checked_recompute(text: str) -> str:
    """Return the text in the one way it is written.

    >>> checked_recompute("selective:8, full:12")
    'full:12,selective:8'

    Raises:
        UsageError: it is no such text.
    """
    counts = _counts(text)
    if text.strip() in WORDS:
        return text.strip()
    return ",".join(f"{name}:{counts[name]}" for name in KINDS if name in counts)


def mlp_owner(widths: Mapping[str, int], block: str) -> str | None:
    """Return the innermost module of a block that owns its widest linear layers outside of attention; None where that is none.

    `widths` are full name → the larger of inputs and outputs, of linear layers of any blocks.

    >>> mlp_owner({"layers.0.mlp.gate": 8, "layers.0.mlp.down": 8, "layers.0.attn.q": 4}, "layers.0")
    'layers.0.mlp'
    """
    inside = {name: width for name, width in widths.items() if name.startswith(f"{block}.")}
    inside = {name: width for name, width in inside.items() if not any(map(ATTENTION.search, name.split(".")[:-1]))}
    widest = [name.split(".")[:-1] for name, width in inside.items() if width == max(inside.values())]
    shared = 0
    while widest and all(len(parts) > shared and parts[shared] == widest[0][shared] for parts in widest):
        shared += 1
    owner = ".".join(widest[0][:shared]) if widest else ""
    return owner if owner.startswith(f"{block}.") else None


def _counts(text: str) -> dict[str, int | None]:
    """Return kind → number of blocks, None: all of them."""
    text = text.strip()
    if text in WORDS:
        return {text: None} if text in KINDS else {}
    counts: dict[str, int | None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(full|selective):([1-9][0-9]{0,5})\s*", part)
        if match is None or match[1] in counts:
            raise UsageError(
                f"recompute is {text!r}; it must be {', '.join(WORDS)}, or numbers of decoder blocks: full:12, selective:8, or"
                " both: full:12,selective:8"
            )
        counts[match[1]] = int(match[2])
    return counts
