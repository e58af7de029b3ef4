"""How surprised is the model by rows it should know, per token?

The negative log-likelihood of every token is computed once, in float32, and summed twice: over the response (what was
trained) and over all tokens of the rendered conversation but the first, which nothing predicts. Rows go through the model
in windows with a key/value cache, so that logits of at most `LOGITS_AT_ONCE` positions exist at a time; the whole matrix
would need gigabytes at a vocabulary of 150,000. The head is the model's own, so scaled or capped logits stay right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from quantkit.console import progress
from quantkit.errors import UsageError, VerificationError
from quantkit.evaluation.forward import batches, pass_tokens
from quantkit.evaluation.generation import context_length
from quantkit.evaluation.statistics import Floor, Score, bootstrap_ratio
from quantkit.evaluation.windows import LabelledRow, Piece, cut_tokens, pieces

LOGITS_AT_ONCE = 1024
"""Positions whose logits exist at a time: 200 MB in float32 at a vocabulary of 49,152."""


@dataclass(frozen=True, slots=True)
class RowLoss:
    """Summed negative log-likelihood in nats, and how many tokens it is over."""

    all_nll: float
    all_tokens: int
    response_nll: float
    response_tokens: int
    cut_tokens: int = 0
    """Tokens beyond the model's context, which were not judged."""


def row_losses(
    model: Any, rows: Sequence[LabelledRow], *, batch_size: int, title: str = "perplexity", logits_at_once: int | None = None
) -> list[RowLoss]:
    """Return the losses of each row, in order; `logits_at_once` positions have theirs at a time (default: `LOGITS_AT_ONCE`).

    Of rows longer than the context, plain texts are judged in windows, conversations are cut there and say so.
    """
    import torch

    parts = sorted(pieces(rows, context_length(model)), key=lambda piece: -len(piece.input_ids))
    judged: dict[int, list[tuple[Piece, Any]]] = {}
    training = model.training
    model.eval()
    with progress(title, len(parts), unit="rows" if len(parts) == len(rows) else "windows") as bar:
        for batch in batches([len(piece.input_ids) for piece in parts], one_pass=pass_tokens(model), most_rows=batch_size):
            chosen = [parts[at] for at in batch]
            with torch.inference_mode():
                nll = _token_nll(model, [piece.input_ids for piece in chosen], logits_at_once or LOGITS_AT_ONCE)
            for at, piece in enumerate(chosen):
                judged.setdefault(piece.row, []).append((piece, nll[at][: len(piece.input_ids) - 1]))
            bar.advance(len(chosen))
    model.train(training)
    return [_row_loss(row, judged[number]) for number, row in enumerate(rows)]


def _row_loss(row: LabelledRow, judged: Sequence[tuple[Piece, Any]]) -> RowLoss:
    """Add up a row's pieces with their losses per token."""
    import torch

    response = [torch.tensor([label != -100 for label in piece.labels[1:]], dtype=torch.bool) for piece, _ in judged]
    return RowLoss(
        all_nll=math.fsum(float(values.sum()) for _, values in judged),
        all_tokens=sum(len(values) for _, values in judged),
        response_nll=math.fsum(float(values[kept].sum()) for (_, values), kept in zip(judged, response, strict=True)),
        response_tokens=sum(int(kept.sum()) for kept in response),
        cut_tokens=cut_tokens(row, [piece for piece, _ in judged]),
    )


def _token_nll(model: Any, rows: Sequence[Sequence[int]], logits_at_once: int) -> Any:
    """Return float64 negative log-likelihoods `[rows, longest - 1]` on the CPU; padding holds values of no meaning."""
    import torch
    from transformers import DynamicCache

    longest = max(map(len, rows))
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        mask[row, : len(tokens)] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    window = max(1, logits_at_once // len(rows))
    whole = longest - 1 <= window
    cache = None if whole else DynamicCache(config=model.config)
    parts = []
    for start in range(0, longest - 1, window):
        end = min(start + window, longest - 1)
        output = model(input_ids=ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=not whole)
        logits = output.logits.float()
        target = logits.gather(-1, ids[:, start + 1 : end + 1, None]).squeeze(-1)
        parts.append((logits.logsumexp(-1) - target).double().cpu())
    return torch.cat(parts, dim=1) if parts else torch.zeros((len(rows), 0), dtype=torch.float64)


def perplexity_score(
    losses: Sequence[RowLoss], rows: Sequence[LabelledRow], *, over: Literal["response", "all"], vocabulary: int, seed: int
) -> Score:
    """Return exp(mean negative log-likelihood per token) with a bootstrap interval over rows; lower is better.

    Its floors on the same tokens: `uniform` knows the size of the vocabulary, `unigram` how often each token occurs in
    these very rows.

    Raises:
        VerificationError: a loss is not finite.
        UsageError: there is no token to judge.
    """
    pairs = [_pair(loss, over) for loss in losses]
    kept = [pair for pair in pairs if pair[1]]
    tokens = sum(pair[1] for pair in kept)
    if not tokens:
        raise UsageError(f"no {over} tokens to compute a perplexity over; every row was cut before them or has none")
    mean = sum(pair[0] for pair in kept) / tokens
    if not math.isfinite(mean):
        row = next(index for index, pair in enumerate(pairs) if not math.isfinite(pair[0]))
        raise VerificationError(f"the loss of row {row} is not finite; the model's weights or its compute data type are broken")
    value = _exp(mean)
    low, high = (_exp(bound) for bound in bootstrap_ratio(kept, seed=seed))
    wanted = [token for row in rows for token in _judged(row, over)]
    return Score(
        value=value,
        n=len(kept),
        low=min(low, value),
        high=max(high, value),
        interval="bootstrap",
        coverage=tokens / len(wanted),
        floors=(Floor(name="uniform", value=float(vocabulary)), Floor(name="unigram", value=_unigram(wanted))),
        higher_is_better=False,
    )


def _pair(loss: RowLoss, over: str) -> tuple[float, int]:
    return (loss.response_nll, loss.response_tokens) if over == "response" else (loss.all_nll, loss.all_tokens)


def _judged(row: LabelledRow, over: str) -> list[int]:
    pairs = list(zip(row.input_ids, row.labels, strict=True))[1:]
    return [token for token, label in pairs if over == "all" or label != -100]


def _unigram(tokens: Sequence[int]) -> float:
    """Return the perplexity of the tokens' own frequencies.

    >>> round(_unigram([1, 1, 2, 2]), 6)
    2.0
    """
    counts: dict[int, int] = {}
    for token in tokens:
        counts[token] = counts.get(token, 0) + 1
    return _exp(-sum(count * math.log(count / len(tokens)) for count in counts.values()) / len(tokens))


def _exp(nats: float) -> float:
    """Return e^nats, at most 1e300: JSON has no infinity."""
    return math.exp(min(nats, math.log(1e300)))
