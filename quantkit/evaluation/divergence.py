"""How far are a model's next-token distributions from another one's, at every position of the responses?

Both models run side by side over the same rows, in windows with a key/value cache, so that logits of at most
`POSITIONS_AT_ONCE` positions of each exist at a time; the Kullback-Leibler divergence comes from both whole distributions in
float32. Comparing losses or answers instead sees one token of each distribution: two models of equal perplexity can disagree
everywhere, and a rare large divergence, which the 99th percentile shows, moves no mean.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantkit.console import progress
from quantkit.errors import UsageError, VerificationError
from quantkit.evaluation.forward import batches, logits_at_end, pass_tokens
from quantkit.evaluation.generation import context_length
from quantkit.evaluation.statistics import Floor, Score, quantile_score, ratio_score, wilson_interval
from quantkit.evaluation.windows import LabelledRow, Piece, pieces

POSITIONS_AT_ONCE = 256
"""Positions whose logits exist at a time: 50 MB in float32 and model at a vocabulary of 49,152; their softmax as much again."""
TAIL = 0.99


@dataclass(frozen=True, slots=True)
class Reference:
    """A model to compare with, which is loaded when everything else has been measured."""

    name: str
    load: Callable[[], Any]
    """Returns the loaded model."""


@dataclass(frozen=True, slots=True)
class RowDivergence:
    """What one row's response positions say; the four lists are equally long, in the order of the positions."""

    kl: list[float]
    """Kullback-Leibler divergence from the reference, in nats."""
    uniform_kl: list[float]
    """What a model that finds all tokens equally likely would have there."""
    agrees: list[bool]
    """Whether the likeliest token is the reference's."""
    expected: list[int]
    """The reference's likeliest token."""
    cut_tokens: int = 0
    """Response tokens beyond the context of one of the models, which were not judged."""

    @property
    def mean_kl(self) -> float | None:
        """Return the mean divergence; None where no position was judged."""
        return math.fsum(self.kl) / len(self.kl) if self.kl else None

    def extend(self, more: "RowDivergence") -> None:
        """Add the positions of what follows in the same row."""
        for name in ("kl", "uniform_kl", "agrees", "expected"):
            getattr(self, name).extend(getattr(more, name))


def require_same_vocabulary(tokenizer: Any, other: Any, name: str) -> None:
    """Raise `UsageError` where two tokenizers give one token different numbers, or only one of them has it."""
    mine, theirs = tokenizer.get_vocab(), other.get_vocab()
    if mine == theirs:
        return
    token = next((token for token in sorted({*mine, *theirs}) if mine.get(token) != theirs.get(token)), "")
    raise UsageError(
        f"{name}: its tokenizer has {len(theirs)} tokens, the model's {len(mine)}, and {token!r} is number {theirs.get(token)}"
        f" there and {mine.get(token)} here; divergence compares models of one vocabulary"
    )


def row_divergences(
    model: Any, reference: Any, rows: Sequence[LabelledRow], *, batch_size: int, title: str = "divergence"
) -> list[RowDivergence]:
    """Return how far `model` is from `reference` at the response positions of each row, in order.

    Of rows longer than the shorter context of both, plain texts are judged in windows, conversations are cut and say so.

    Raises:
        UsageError: the models' vocabularies differ in size.
        VerificationError: a divergence is not finite.
    """
    import torch

    sizes = [int(item.config.get_text_config().vocab_size) for item in (reference, model)]
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"the reference model's vocabulary has {sizes[0]} tokens, the model's {sizes[1]}; divergence compares models of one"
            " vocabulary"
        )
    context = min(context_length(model), context_length(reference))
    parts = pieces(rows, context)
    order = sorted(range(len(parts)), key=lambda at: -len(parts[at].input_ids))
    found: dict[int, RowDivergence] = {}
    training = [item.training for item in (model, reference)]
    model.eval()
    reference.eval()
    try:
        with torch.inference_mode(), progress(title, len(parts), unit="rows" if len(parts) == len(rows) else "windows") as bar:
            lengths = [len(parts[at].input_ids) for at in order]
            for batch in batches(lengths, one_pass=pass_tokens(model), most_rows=batch_size):
                chosen = [order[at] for at in batch]
                found.update(zip(chosen, _batch(model, reference, [parts[at] for at in chosen]), strict=True))
                bar.advance(len(chosen))
    finally:
        model.train(training[0])
        reference.train(training[1])
    whole = [RowDivergence([], [], [], [], _cut(row, context)) for row in rows]
    for at, piece in enumerate(parts):
        whole[piece.row].extend(found[at])
    for index, joined in enumerate(whole):
        if not all(map(math.isfinite, joined.kl)):
            raise VerificationError(
                f"the divergence of row {index} is not finite; the weights or the compute data type of one model are broken"
            )
    return whole


def divergence_scores(rows: Sequence[RowDivergence], *, vocabulary: int, seed: int) -> dict[str, Score]:
    """Return `kl_mean`, `kl_p99` and `top1_agreement` over all judged positions, rows resampled.

    Floors on the same positions: `uniform` finds all tokens equally likely; `majority` always says the reference's commonest.

    Raises:
        UsageError: there is no position to judge.
    """
    judged = [row for row in rows if row.kl]
    tokens = sum(len(row.kl) for row in judged)
    if not tokens:
        raise UsageError("no response tokens to compare two models on; every row was cut before them or has none")
    coverage = min(tokens / (tokens + sum(row.cut_tokens for row in rows)), len(judged) / len(rows))
    uniform = [row.uniform_kl for row in judged]
    expected = [token for row in judged for token in row.expected]
    commonest = max(expected.count(token) for token in set(expected))

    def mean(values: Sequence[Sequence[float]]) -> float:
        return math.fsum(value for row in values for value in row) / tokens

    return {
        "kl_mean": ratio_score(
            [(math.fsum(row.kl), len(row.kl)) for row in judged],
            seed=seed,
            coverage=coverage,
            floors=[Floor(name="uniform", value=mean(uniform))],
            higher_is_better=False,
        ),
        "kl_p99": quantile_score(
            [row.kl for row in judged],
            TAIL,
            seed=seed,
            coverage=coverage,
            floors=[Floor(name="uniform", value=quantile_score(uniform, TAIL, seed=seed, coverage=coverage).value)],
            higher_is_better=False,
        ),
        "top1_agreement": _agreement(
            judged,
            seed=seed,
            coverage=coverage,
            floors=[Floor(name="uniform", value=1 / vocabulary), Floor(name="majority", value=commonest / tokens)],
        ),
    }


def _agreement(rows: Sequence[RowDivergence], *, seed: int, coverage: float, floors: Sequence[Floor]) -> Score:
    """Return the share of positions that agree; where all or none do, by the interval of Wilson."""
    score = ratio_score([(sum(row.agrees), len(row.agrees)) for row in rows], seed=seed, coverage=coverage, floors=floors)
    if score.value not in (0.0, 1.0):
        return score
    low, high = wilson_interval(round(score.value) * len(rows), len(rows))
    return replace(score, low=low, high=high, interval="wilson")


def _batch(model: Any, reference: Any, rows: Sequence[Piece]) -> list[RowDivergence]:
    """Judge some rows at once, padded on the right."""
    import torch

    ids = [row.input_ids for row in rows]
    longest = max(map(len, ids))
    tokens = torch.zeros((len(ids), longest), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    wanted = torch.zeros((len(ids), max(longest - 1, 0)), dtype=torch.bool)  # positions that predict a response token
    for at, (row, kept) in enumerate(zip(rows, ids, strict=True)):
        tokens[at, : len(kept)] = torch.tensor(kept, dtype=torch.long)
        mask[at, : len(kept)] = 1
        labels = torch.tensor(list(row.labels[1 : len(kept)]), dtype=torch.long)
        wanted[at, : len(labels)] = labels != -100
    columns = wanted.any(dim=0).nonzero().flatten().tolist()
    found = [RowDivergence([], [], [], []) for _ in rows]
    if not columns:
        return found
    walks = [_Walk(item, tokens, mask) for item in (reference, model)]
    for walk in walks:
        walk.skip(columns[0])
    window = max(1, POSITIONS_AT_ONCE // len(rows))
    for start in range(columns[0], columns[-1] + 1, window):
        stop = min(start + window, columns[-1] + 1)
        chosen = wanted[:, start:stop]
        compared = _compare(*(walk.logits(stop)[chosen.to(walk.device)] for walk in walks))
        for at, kl, uniform_kl, agrees, expected in zip(chosen.nonzero()[:, 0].tolist(), *compared, strict=True):
            found[at].kl.append(kl)
            found[at].uniform_kl.append(uniform_kl)
            found[at].agrees.append(agrees)
            found[at].expected.append(expected)
    return found


class _Walk:
    """One model on its way through rows of token ids, a window of columns at a time."""

    def __init__(self, model: Any, tokens: Any, mask: Any) -> None:
        self.device = model.device
        self._model, self._tokens, self._mask = model, tokens, mask
        self._at, self._cache = 0, None

    def skip(self, stop: int) -> None:
        """Go on to a column without reading logits on the way."""
        if stop > self._at:
            self._step(stop, 1)

    def logits(self, stop: int) -> Any:
        """Go on to a column and return the logits of the columns on the way, `[rows, columns, vocabulary]`."""
        return self._step(stop, stop - self._at)

    def _step(self, stop: int, keep: int) -> Any:
        end = logits_at_end(
            self._model,
            self._tokens[:, self._at : stop],
            keep,
            cached=True,
            mask=self._mask[:, self._at : stop],
            before=self._mask[:, : self._at],
            cache=self._cache,
        )
        self._at, self._cache = stop, end.cache
        return end.logits


def _compare(reference: Any, other: Any) -> tuple[list[float], list[float], list[bool], list[int]]:
    """Return divergence, that of equal chances, agreement and the reference's choice for `[positions, vocabulary]` logits."""
    import torch

    p = reference.float().log_softmax(-1)
    q = other.to(p.device).float().log_softmax(-1)
    share = p.exp()
    gap = torch.where(share == 0, 0.0, share * (p - q)).sum(-1).clamp(min=0.0)  # rounding may go below nothing
    entropy = -torch.where(share == 0, 0.0, share * p).sum(-1)
    expected = p.argmax(-1)
    return (
        gap.double().tolist(),
        (math.log(p.shape[-1]) - entropy).clamp(min=0.0).double().tolist(),
        (expected == q.argmax(-1)).tolist(),
        expected.tolist(),
    )


def _cut(row: LabelledRow, context: int) -> int:
    """Return the response tokens that no piece of a row holds; windows of a plain text leave none."""
    return 0 if all(label != -100 for label in row.labels[1:]) else sum(label != -100 for label in row.labels[context:])
