"""What did a training run do, in numbers that were measured?"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from quantkit.spec import read_fields


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Counts and losses of the whole run; a resumed run includes what its checkpoint had done before."""

    steps: int
    """Optimizer steps done."""
    total_steps: int
    """Optimizer steps the run was to have; more than `steps` when it was interrupted."""
    losses: list[float] = field(default_factory=list)
    """Mean loss per supervised token of each step, in nats."""
    final_loss: float | None = None
    """Loss of the last step."""
    duration_s: float = 0.0
    """Time in the training loop, checkpoints included, evaluation excluded."""
    tokens: int = 0
    """Tokens seen, padding excluded."""
    response_tokens: int = 0
    """Tokens the loss was taken on."""
    tokens_per_s: float = 0.0
    """`tokens` by `duration_s`."""
    arithmetic_dtype: str = "float32"
    """Data type of the matrix products; trained weights and optimizer are float32 in any case."""
    padding_free: bool = False
    """Whether the rows of a batch were one sequence without padding."""
    prefix_sharing: bool = False
    """Whether tokens that rows of a batch begin with were computed once."""
    packing: bool = False
    """Whether batches were filled up with rows to a number of tokens."""
    fused_adapters: int = 0
    """Adapters computed in place, with a backward pass of their own."""
    recompute: str = "none"
    """What the backward pass computed again: none, selective (MLPs), full (decoder blocks), or of how many (full:12)."""
    optim: str = "adamw_torch"
    """The optimizer, as `TrainingArguments.optim` spells it."""
    trainable_parameters: int = 0
    evaluation_loss_before: float | None = None
    """Mean loss per supervised token on the first `evaluation_rows` held-out rows, in nats, before step 1."""
    evaluation_loss_after: float | None = None
    """The same after the last step; None when the run was interrupted."""
    evaluation_rows: int = 0
    interrupted: bool = False
    """Whether a signal ended the run early; a checkpoint was saved."""
    resumed_from: int | None = None
    """The step of the checkpoint this run went on from."""
    accepted_changes: list[dict[str, Any]] = field(default_factory=list)
    """In what the run differs after an interruption, as `accept_changes` allowed: field, was, is, from_step."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read a result back from JSON data; raises `UsageError` as `QuantizationSpec.from_dict` does."""
        return read_fields(cls, data, where="training")
