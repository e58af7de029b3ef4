"""What lives at one moment of a run, and what of it comes and goes?

Holes in a CPU's heap grow with what is made and freed between two steps, not with weights, which are read once and stay: one
share over both, the alternative, told runs of many weights too high and long batches on 4-bit weights too low.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STEP = ("start", "loss", "backward", "step")
"""The moments before the first step and in each."""
COMPUTING = ("loss", "backward")
"""Those that multiply matrices."""
TRAINING = ("start", "trial", *STEP[1:], "end")
"""The moments of a run's training stage."""
JUDGING = ("observe", "compare", "save")
"""Those at a run's end that multiply matrices."""
LASTING = (
    *("embeddings, head, norms", "adapters", "optimizer states", "weights, all of them trained", "the base, dense"),
    *("the folded model in float32", "the model to be saved", "the same, loaded again to compare"),
    *("embeddings, head, norms in float32", "the same, as stored"),
)
"""Items beside `… weights` that stay for as long as a stage takes: models, and what belongs to them."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What lives at one moment of a run: name → bytes."""

    name: str
    items: Mapping[str, int]

    @property
    def size_bytes(self) -> int:
        """Return the sum."""
        return sum(self.items.values())

    @property
    def passing_bytes(self) -> int:
        """Return the bytes of items that come and go."""
        return sum(size for name, size in self.items.items() if not (name in LASTING or name.endswith("weights")))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"name": self.name, "items": dict(self.items), "size_bytes": self.size_bytes}
