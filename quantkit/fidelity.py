"""Is this model still the one it was made from? Compare logits on the same held-out tokens.

Two models that should be the same (an adapter on its base and the merge of the two; a model in memory and its saved
folder) are run over the same short sequences, in float32 statistics. Comparing weights instead would miss what the
forward pass does with them, and comparing generated text would miss everything below one changed token.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from quantkit.errors import VerificationError
from quantkit.layout import counted

if TYPE_CHECKING:
    from torch import Tensor

PROBE_TOKENS = 256
"""Positions compared; at a vocabulary of 128,000 two copies of their float32 logits take 250 MB."""
ROWS_AT_ONCE = 16
"""Positions whose differences exist at a time: six tensors as large as their logits."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How far one model's next-token distributions are from another's, over `tokens` positions."""

    tokens: int
    max_abs_logit_difference: float
    mean_abs_logit_difference: float
    mean_kl: float
    """Mean Kullback-Leibler divergence from the reference, in nats."""
    top1_agreement: float
    """Share of positions whose likeliest token is the same."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"max |Δlogit| {self.max_abs_logit_difference:.2g}, mean {self.mean_abs_logit_difference:.2g},"
            f" mean KL {self.mean_kl:.2g},"
            f" top-1 agreement {self.top1_agreement:.1%} on {counted(self.tokens, 'token')}"
        )


def probe_logits(model: Any, rows: Sequence[Sequence[int]], *, tokens: int = PROBE_TOKENS) -> "Tensor":
    """Return the model's logits, float32 `[positions, vocabulary]` on the CPU, for the first `tokens` positions of the rows.

    Rows are token ids; each is run by itself, so that padding plays no part. The model's training mode is restored.
    """
    import torch

    was_training = model.training
    model.eval()
    parts, left = [], tokens
    try:
        with torch.no_grad():
            for row in rows:
                if left <= 0:
                    break
                ids = torch.tensor([list(row[:left])], device=model.device)
                parts.append(model(input_ids=ids, use_cache=False).logits[0].float().cpu())
                left -= ids.shape[1]
    finally:
        model.train(was_training)
    if not parts:
        raise VerificationError("nothing to compare models on: no rows were given")
    return torch.cat(parts)


def compare_logits(reference: "Tensor", other: "Tensor") -> Fidelity:
    """Compare two results of `probe_logits` over the same rows.

    Raises:
        VerificationError: the shapes differ, or a logit is not finite.
    """
    import torch

    if reference.shape != other.shape:
        raise VerificationError(f"logits of {tuple(reference.shape)} cannot be compared with {tuple(other.shape)}")
    for name, logits in (("reference", reference), ("compared", other)):
        if not bool(torch.isfinite(logits).all()):
            raise VerificationError(f"the {name} model gives logits that are not finite")
    parts = [slice(start, start + ROWS_AT_ONCE) for start in range(0, reference.shape[0], ROWS_AT_ONCE)]
    rows = [_differences(reference[part], other[part]) for part in parts]
    largest, mean, divergence, agrees = (torch.cat(found) for found in zip(*rows, strict=True))
    return Fidelity(
        tokens=reference.shape[0],
        max_abs_logit_difference=float(largest.max()),
        mean_abs_logit_difference=float(mean.mean()),
        mean_kl=max(0.0, float(divergence.mean())),
        top1_agreement=float(agrees.mean()),
    )


def _differences(reference: "Tensor", other: "Tensor") -> tuple["Tensor", "Tensor", "Tensor", "Tensor"]:
    """Return largest and mean difference, divergence and agreement of each position."""
    gap = (reference - other).abs()
    p, q = reference.log_softmax(-1), other.log_softmax(-1)
    agrees = (reference.argmax(-1) == other.argmax(-1)).float()
    return gap.amax(-1), gap.mean(-1), (p.exp() * (p - q)).sum(-1), agrees
