"""How many bytes of state does an optimizer keep per trained parameter, and where?

By the names that `TrainingArguments.optim` understands.
"""

from dataclasses import dataclass

BLOCK = 256
"""Values that share a scale in bitsandbytes' 8-bit states."""


@dataclass(frozen=True, slots=True)
class OptimizerStates:
    """States of an optimizer."""

    numbers: float
    """Numbers per parameter."""
    eight_bit: bool = False
    paged: bool = False
    """Whether they lie in memory that a GPU pages to the CPU's: no part of what PyTorch allocates."""
    known: bool = True
    """Whether the name is one that is counted; others are counted as AdamW's."""

    def size(self, parameters: int, wide: int) -> int:
        """Return the bytes for so many parameters of `wide` bytes each."""
        if self.eight_bit:
            return round(self.numbers * (parameters + 4 * -(-parameters // BLOCK)))
        return round(self.numbers * parameters * wide)


TWO, ONE = ("adamw", "adam", "ademamix"), ("lion", "rmsprop", "adagrad")


def optimizer_states(optim: str) -> OptimizerStates:
    """Return what an optimizer of this name keeps.

    >>> optimizer_states("paged_adamw_8bit")
    OptimizerStates(numbers=2, eight_bit=True, paged=True, known=True)
    >>> optimizer_states("adamw_torch").size(1000, 4)
    8000
    """
    name = optim.removeprefix("paged_")
    paged, eight = optim != name, name.endswith("8bit")
    if name.startswith("sgd"):
        return OptimizerStates(0, paged=paged)
    if name.startswith("adafactor"):
        return OptimizerStates(0.01, paged=paged)  # a row and a column per matrix
    if name.startswith("ademamix"):
        return OptimizerStates(3, eight, paged)
    if name.startswith(ONE):
        return OptimizerStates(1, eight, paged)
    return OptimizerStates(2, eight, paged, known=name.startswith(TWO))
