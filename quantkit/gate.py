"""Is a quantized model still good enough to be used? Its loss, its predictions and its texts against the source model's.

Four numbers on held-out text: the perplexity ratio (what it costs on average), the mean KL divergence and top-1 agreement
(how often it says something else), and the share of greedy answers that are empty or loop. Each method has limits by bits;
beyond one the artifact is marked. Perplexity alone misses a model that no longer stops, agreement alone one that is unsure.
A share of a few answers may be luck: its rise marks only if its interval says so, too, as evaluation's marks do.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from quantkit.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from torch import Tensor

KL_POSITIONS = 1024
"""Positions whose whole distribution is compared, spread evenly: in float16 they take 100 MB at a vocabulary of 49,152."""
LEAST = -65504.0
"""The smallest log-probability that float16 holds."""
ANSWER_TOKENS = 40
PROMPTS = 16
"""Prompts that are answered, at once. Where no answer of the source is broken, 7 broken ones mark; of 4, only all would."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLimits:
    """Beyond which numbers a quantized model is marked."""

    max_ppl_ratio: float
    """Largest perplexity, as a multiple of the source model's."""
    max_kl: float
    """Largest mean Kullback-Leibler divergence from the source model, in nats."""
    min_top1: float
    """Smallest share of positions whose likeliest token is the source model's."""
    max_broken_rise: float = 0.3
    """How far the share of answers that are empty or loop may rise; a rise marks if its interval lies beyond half of this."""

    def with_changes(self, **changes: float | None) -> "GateLimits":
        """Return a copy with the fields replaced that are given."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


DEFAULT_LIMITS = {
    8: GateLimits(max_ppl_ratio=1.1, max_kl=0.05, min_top1=0.9),
    4: GateLimits(max_ppl_ratio=1.5, max_kl=0.5, min_top1=0.7),
    3: GateLimits(max_ppl_ratio=3.0, max_kl=1.2, min_top1=0.5),
    2: GateLimits(max_ppl_ratio=20.0, max_kl=3.0, min_top1=0.2),
}
"""By bits of a weight; a method may have its own (`MethodInfo.gate_limits`)."""


def limits_for(weights_bits: int, own: Mapping[int, GateLimits] | None = None) -> GateLimits:
    """Return the limits for weights of this width: the method's own, else the default of the nearest width below or at it."""
    if own and weights_bits in own:
        return own[weights_bits]
    return DEFAULT_LIMITS[max((bits for bits in DEFAULT_LIMITS if bits <= weights_bits), default=2)]


@dataclass(frozen=True, slots=True)
class GateText:
    """Held-out text: rows of token ids, prompts to answer, and where they come from."""

    rows: tuple[tuple[int, ...], ...]
    prompts: tuple[tuple[int, ...], ...]
    source: str

    @property
    def fingerprint(self) -> str:
        """Return a sha256, hexadecimal, over rows and prompts."""
        return hashlib.sha256(repr((self.rows, self.prompts)).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return what a record keeps of it."""
        tokens = sum(map(len, self.rows))
        return {"source": self.source, "tokens": tokens, "prompts": len(self.prompts), "fingerprint": self.fingerprint}


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a model does on a `GateText`."""

    nll: float
    """Sum over all positions, in nats."""
    top1: "Tensor"
    """Likeliest next token, `[positions]`."""
    log_probabilities: "Tensor"
    """float16 `[KL_POSITIONS or fewer, vocabulary]`."""
    broken: tuple[bool, ...] | None
    """Whether each greedy answer is empty or loops; None where none was asked for, or none could be."""


@dataclass(frozen=True, slots=True)
class GateMeasures:
    """How far a model is from the one it was made from."""

    perplexity_source: float
    perplexity: float
    perplexity_ratio: float
    mean_kl: float
    top1_agreement: float
    broken_source: float | None
    """Share of the source model's greedy answers that are empty or loop."""
    broken: float | None
    answers: int = 0
    """Prompts that both were asked."""
    broken_rise_low: float | None = None
    """Lower bound of the 95 % interval of the rise from `broken_source` to `broken`."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        broken = "" if self.broken is None else f", {self.broken:.0%} of {self.answers} answers broken"
        broken += "" if self.broken is None else f" (source {self.broken_source:.0%})"
        return (
            f"perplexity {self.perplexity:.3f} (source {self.perplexity_source:.3f}, ×{self.perplexity_ratio:.3f}),"
            f" mean KL {self.mean_kl:.3g}, top-1 agreement {self.top1_agreement:.1%}{broken}"
        )


def observe(model: Any, tokenizer: Any, text: GateText, *, answers: bool = True) -> Behaviour:
    """Return what a model does on held-out text, its prompts left aside without `answers`; logits of one row exist at a time.

    Raises:
        VerificationError: its loss is not finite.
    """
    from quantkit.backends.unpacked import holding_unpacked

    with holding_unpacked(model):
        seen = _observe(model, text)
        return replace(seen, broken=_broken(model, tokenizer, text)) if answers else seen


def answered(seen: Behaviour, model: Any, tokenizer: Any, text: GateText) -> Behaviour:
    """Return what `observe` saw without answers, with them."""
    from quantkit.backends.unpacked import holding_unpacked

    with holding_unpacked(model):
        return replace(seen, broken=_broken(model, tokenizer, text))


def _observe(model: Any, text: GateText) -> Behaviour:
    import torch

    positions = sum(len(row) - 1 for row in text.rows)
    step = max(1, -(-positions // KL_POSITIONS))
    nll, top1, kept, done = 0.0, [], [], 0
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for row in text.rows:
            ids = torch.tensor([list(row)], device=model.device)
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0].float()
            said = logits.log_softmax(-1)
            nll -= float(said.gather(-1, ids[0, 1:, None]).double().sum())
            top1.append(logits.argmax(-1).cpu())
            kept.append(said[(-done) % step :: step].half().cpu())
            done += len(said)
    model.train(was_training)
    if not math.isfinite(nll):
        raise VerificationError("the loss on held-out text is not finite; the model's weights are broken")
    return Behaviour(nll, torch.cat(top1), torch.cat(kept), None)


def compare(source: Behaviour, other: Behaviour, text: GateText) -> GateMeasures:
    """Return how far `other` is from `source`, both observed on this text."""
    from quantkit.evaluation.measures import newcombe_interval

    positions = sum(len(row) - 1 for row in text.rows)
    pairs = list(zip(other.broken, source.broken, strict=True)) if source.broken and other.broken else []
    n, now, before = len(pairs), sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    both = sum(a and b for a, b in pairs)
    p, q = (item.log_probabilities.float().clamp(min=LEAST) for item in (source, other))
    kl = (p.exp() * (p - q)).sum(-1).mean()
    return GateMeasures(
        perplexity_source=_exp(source.nll / positions),
        perplexity=_exp(other.nll / positions),
        perplexity_ratio=_exp((other.nll - source.nll) / positions),
        mean_kl=max(0.0, float(kl)),
        top1_agreement=float((source.top1 == other.top1).float().mean()),
        broken_source=before / n if n else None,
        broken=now / n if n else None,
        answers=n,
        broken_rise_low=newcombe_interval(both, now - both, before - both, n)[0] if n else None,
    )


def judge(measures: GateMeasures, limits: GateLimits) -> list[str]:
    """Return in which sentences a model is beyond the limits; empty when it passes."""
    reasons = []
    if not measures.perplexity_ratio <= limits.max_ppl_ratio:
        reasons.append(f"perplexity is {measures.perplexity_ratio:.3f} times the source's, above {limits.max_ppl_ratio:g}")
    if not measures.mean_kl <= limits.max_kl:
        reasons.append(f"mean KL is {measures.mean_kl:.3g} nats, above {limits.max_kl:g}")
    if not measures.top1_agreement >= limits.min_top1:
        reasons.append(f"top-1 agreement is {measures.top1_agreement:.1%}, below {limits.min_top1:.0%}")
    if _rises(measures, limits):
        reasons.append(
            f"{measures.broken:.0%} of {measures.answers} greedy answers are empty or loop,"
            f" {measures.broken_source:.0%} of the source's"
        )
    return reasons


def untold(measures: GateMeasures, limits: GateLimits) -> str | None:
    """Return why the answers could not have marked a model, whatever they were; None where they could."""
    from quantkit.evaluation.measures import newcombe_interval

    n = measures.answers
    if not n:
        return "no answer was asked for: no token ends one, or no prompt leaves room for one"
    before = round((measures.broken_source or 0.0) * n)
    worst = replace(measures, broken=1.0, broken_rise_low=newcombe_interval(before, n - before, 0, n)[0])
    if _rises(worst, limits):
        return None
    return f"with {n} of them, {before} of the source's empty or looping, even a model that breaks all could be luck"


def _rises(measures: GateMeasures, limits: GateLimits) -> bool:
    """Whether the share of broken answers rises by more than the limit, and by its interval by half of it."""
    if measures.broken is None or measures.broken_rise_low is None:
        return False
    rise = measures.broken - (measures.broken_source or 0.0)
    return rise > limits.max_broken_rise and 2 * measures.broken_rise_low > limits.max_broken_rise


def _broken(model: Any, tokenizer: Any, text: GateText) -> tuple[bool, ...] | None:
    """Return whether each greedy answer is empty or loops; None where the model knows no end of an answer."""
    from quantkit.evaluation.degeneration import is_repetitive
    from quantkit.evaluation.generation import context_length, generate

    fitting = [prompt for prompt in text.prompts if len(prompt) + ANSWER_TOKENS <= context_length(model)]
    try:
        answers = generate(
            model, tokenizer, fitting, batch_size=PROMPTS, max_new_tokens=ANSWER_TOKENS, title="answers on held-out prompts"
        )
    except UsageError:
        return None
    return tuple(not answer.text or is_repetitive(answer.tokens) for answer in answers)


def _exp(nats: float) -> float:
    return math.exp(min(nats, 690.0))
