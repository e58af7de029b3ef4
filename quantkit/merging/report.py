"""What did merging cost? The merged model against the adapter on the base it was trained on, on the same held-out rows.

Two questions are kept apart. What did folding and storing change: the stored weights, computed with in float32. And what
does arithmetic in the stored data type add: the model as `from_pretrained` gives it. One comparison of the saved folder
mixes both, and in bfloat16 the second hides the first. Loss says what the user gets: how much of the improvement that the
fine-tune brought over the base is still there. The models are observed one after the other and need not fit in memory
together.
"""

import math
import random
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from quantkit.errors import UsageError
from quantkit.fidelity import Fidelity, compare_logits, probe_logits
from quantkit.layout import counted, digits

if TYPE_CHECKING:
    from torch import Tensor

    from quantkit.data import PreparedData
    from quantkit.data.encode import EncodedRow

REPORT_ROWS = 64
REPORT_TOKENS = 2048
"""Rows are taken until there are so many, or so many tokens; each is run through four models."""
UNRESOLVED_NATS = 0.02
"""Differences in mean loss below this, two percent of perplexity, are printed but not judged. The update of one training step
is near the resolution of bfloat16: rounding it took 0.014 nats off a gain of 0.025 on a model of 0.6 M parameters."""
LARGEST_KL_WITHOUT_GAIN = 0.01
"""Mean KL in nats above which a merge is marked where the fine-tune gained nothing that could be lost."""
ROUNDED_AWAY = "; a short run's update is easily rounded away in 16 bits: store float32 (save_dtype), or keep the adapter"
"""What to try where the folding itself is exact."""
MAX_LOST_GAIN = {"dequantized": 0.1, "base": 0.1, "requantized": 0.2}
"""By policy: the share of the fine-tune's gain that a merge may lose. Folding alone is exact, so a tenth is generous for dense
weights; on a 4-bit grid a fifth is what error feedback reaches where plain rounding loses nearly all."""
BATCH_ROWS = 8
OBSERVED_AT_ONCE = 256
"""Positions whose logits exist at a time: four times as many, which evaluation takes, are forecast to need more memory than
training Qwen3-0.6B on one row of 512 tokens at a time."""


@dataclass(frozen=True, slots=True)
class ReportRows:
    """Rows that models are compared on, and where they come from."""

    rows: "tuple[EncodedRow, ...]"
    source: str
    held_out: bool
    """Whether the adapter was not trained on them."""

    @property
    def ids(self) -> list[list[int]]:
        """Return the token ids of each row."""
        return [list(row.input_ids) for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """Return what a record keeps of them."""
        tokens = sum(len(row.input_ids) for row in self.rows)
        return {"source": self.source, "held_out": self.held_out, "rows": len(self.rows), "tokens": tokens}


@dataclass(frozen=True, slots=True)
class Observed:
    """What one model says on the rows: logits (float32 `[positions, vocabulary]`) and mean response loss in nats per token."""

    logits: "Tensor"
    loss: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Reference:
    """The adapter on the base it was trained on, and that base without it."""

    adapter: Observed
    base: Observed
    dtype: str
    """Data type that they computed in."""

    def of_losses(self) -> Self:
        """Return what judging a merge needs: of the base its loss, without its logits."""
        return replace(self, base=replace(self.base, logits=self.base.logits[:0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """How far a merged model is from the adapter on its training base. Losses are nats per response token."""

    policy: str
    rows: dict[str, Any]
    response_tokens: int
    reference_dtype: str
    stored: Fidelity
    """The stored weights computed with in float32, against the adapter: folding and storage."""
    as_loaded: Fidelity
    """The model as `from_pretrained` gives it, against the adapter: what a user gets."""
    arithmetic: Fidelity
    """The model as loaded, against its own weights in float32: arithmetic alone."""
    loss_base: float
    loss_adapter: float
    loss_merged: float
    """In float32."""
    loss_merged_as_loaded: float

    @property
    def gain(self) -> float:
        """Return what the fine-tune took off the base's loss, in nats per token; negative where it made it worse."""
        return self.loss_base - self.loss_adapter

    @property
    def gain_kept(self) -> float | None:
        """Return the share of the gain that the stored weights keep; None where there was none to speak of."""
        return (self.loss_base - self.loss_merged) / self.gain if self.gain > UNRESOLVED_NATS else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        losses = {name: getattr(self, f"loss_{name}") for name in ("base", "adapter", "merged", "merged_as_loaded")}
        plain = {key: value for key, value in asdict(self).items() if not key.startswith("loss_")}
        return plain | {
            "loss": losses,
            "perplexity": {name: _perplexity(loss) for name, loss in losses.items()},
            "gain": self.gain,
            "gain_kept": self.gain_kept,
        }

    def lines(self) -> list[str]:
        """Return the report as sentences for the console."""
        kept = "the fine-tune gained nothing there" if self.gain_kept is None else f"{self.gain_kept:.1%} of the gain kept"
        shown = {name: digits(_perplexity(getattr(self, f"loss_{name}")), 4) for name in ("base", "adapter", "merged")}
        rows = "held-out rows" if self.rows["held_out"] else "rows it was trained on"
        return [
            f"stored weights against adapter on its base: {self.stored}",
            f"as loaded against adapter on its base:      {self.as_loaded}",
            f"arithmetic of the stored data type alone:   {self.arithmetic}",
            f"perplexity of {counted(self.response_tokens, 'response token')}, {rows}: base {shown['base']},"
            f" adapter {shown['adapter']}, merged {shown['merged']}: {kept}",
        ]

    def judge(self, max_lost_gain: float) -> list[str]:
        """Return in which sentences the merge lost too much; empty when it passes."""
        lost = self.loss_merged - self.loss_adapter
        if self.gain_kept is None:
            kl, most = self.stored.mean_kl, LARGEST_KL_WITHOUT_GAIN
            far = f"the fine-tune gained nothing measurable, and mean KL from the adapter is {kl:.3g} nats, above {most:g}"
            return [far] if kl > most else []
        if lost > UNRESOLVED_NATS and 1 - self.gain_kept > max_lost_gain:
            why = ROUNDED_AWAY if self.policy == "dequantized" else ""
            return [f"{1 - self.gain_kept:.0%} of the fine-tune's gain is lost, more than {max_lost_gain:.0%}{why}"]
        return []


def choose_rows(data: "PreparedData", *, seed: int, source: str | None = None) -> ReportRows:
    """Return rows of a prepared data set, drawn by seed: held-out ones where there are some, else rows it was trained on.

    Raises:
        UsageError: no row has a response.
    """
    held_out = bool(data.evaluation)
    pool = [row for row in data.evaluation or data.train if row.supervised]
    if not pool:
        raise UsageError(f"{source or data.report.source}: no row has a response that models could be compared on")
    rows, tokens = [], 0
    for row in random.Random(seed).sample(pool, len(pool))[:REPORT_ROWS]:
        rows.append(row)
        tokens += len(row.input_ids)
        if tokens >= REPORT_TOKENS:
            break
    report = data.report.evaluation if data.report.evaluation else data.report
    return ReportRows(tuple(rows), source or report.source, held_out)


def observe(model: Any, rows: ReportRows, *, title: str) -> Observed:
    """Return what a model says on the rows."""
    from quantkit.evaluation.perplexity import row_losses

    losses = row_losses(model, rows.rows, batch_size=BATCH_ROWS, title=title, logits_at_once=OBSERVED_AT_ONCE)
    tokens = sum(item.response_tokens for item in losses)
    if not tokens:
        raise UsageError(f"{rows.source}: every row is longer than the model's context before its response begins")
    return Observed(probe_logits(model, rows.ids), sum(item.response_nll for item in losses) / tokens, tokens)


def observe_reference(model: Any, rows: ReportRows) -> Reference:
    """Return what a `PeftModel` says on the rows, with its adapter and without."""
    adapter = observe(model, rows, title="adapter on its base")
    with model.disable_adapter():
        base = observe(model, rows, title="base alone")
    return Reference(adapter, base, str(model.dtype).removeprefix("torch."))


def compare(reference: Reference, stored: Observed, as_loaded: Observed, rows: ReportRows, *, policy: str) -> MergeReport:
    """Return the report of a merged model that was observed in float32 (`stored`) and as loaded.

    Raises:
        VerificationError: logits are not finite or of another vocabulary.
    """
    return MergeReport(
        policy=policy,
        rows=rows.to_dict(),
        response_tokens=reference.adapter.tokens,
        reference_dtype=reference.dtype,
        stored=compare_logits(reference.adapter.logits, stored.logits),
        as_loaded=compare_logits(reference.adapter.logits, as_loaded.logits),
        arithmetic=compare_logits(stored.logits, as_loaded.logits),
        loss_base=reference.base.loss,
        loss_adapter=reference.adapter.loss,
        loss_merged=stored.loss,
        loss_merged_as_loaded=as_loaded.loss,
    )


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))
