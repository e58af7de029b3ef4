"""Would the model this one was made from ever have written these answers?

Mean negative log-likelihood per token of what was generated, under a reference model: fluent nonsense, and the task's own words
in a random order, pass every test that needs no model. Under the model that wrote them, the number that needs no second model,
it tells nothing: greedy decoding writes what is likely to it, garbage included.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.evaluation.perplexity import row_losses
from quantkit.evaluation.statistics import Floor, Score, ratio_score, share_score

UNLIKELY = 0.5
"""Share of ln(vocabulary), the surprise of a uniform guess, from which an answer counts as unlikely: 5.4 nats per token for
SmolLM2-135M-Instruct. It finds its own answers at 0.3 to 0.9 nats, those of a model trained to another format at 1.7 to 3.9,
fluent text about something else at 2.9 to 4.8, words of the task in a random order at 5.1 to 8.1, random words from 8.6 on."""


FEWEST_TOKENS = 8
"""Shorter answers are not judged: a letter or a number where the reference model would have begun a sentence is no nonsense."""


@dataclass(frozen=True, slots=True)
class _Row:
    input_ids: list[int]
    labels: list[int]


def answers_under(
    reference: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], texts: Sequence[str], *, batch_size: int, title: str
) -> list[tuple[float, int]]:
    """Return each text's summed negative log-likelihood after its prompt, in nats, and its tokens; (0, 0) for empty ones."""
    told = [tokenizer(text, add_special_tokens=False)["input_ids"] if text else [] for text in texts]
    rows = [
        _Row([*prompt, *answer], [-100] * len(prompt) + list(answer))
        for prompt, answer in zip(prompts, told, strict=True)
        if answer
    ]
    found = iter(row_losses(reference, rows, batch_size=batch_size, title=title) if rows else [])
    losses = [next(found) if answer else None for answer in told]
    return [(0.0, 0) if loss is None else (loss.response_nll, loss.response_tokens) for loss in losses]


def plausibility_scores(told: Sequence[tuple[float, int]], *, vocabulary: int, seed: int) -> dict[str, Score]:
    """Return `answer_nll` (nats per token, lower is better) and `unlikely_rate`, both over answers long enough to be judged.

    Their coverage says which share of the rows that is; nothing is returned where no answer is.
    """
    judged = [(nll, tokens) for nll, tokens in told if tokens >= FEWEST_TOKENS]
    if not judged:
        return {}
    coverage, uniform = len(judged) / len(told), math.log(vocabulary)
    unlikely = sum(nll / tokens >= UNLIKELY * uniform for nll, tokens in judged)
    return {
        "answer_nll": ratio_score(
            [(nll, float(tokens)) for nll, tokens in judged],
            seed=seed,
            coverage=coverage,
            floors=[Floor(name="uniform", value=uniform)],
            higher_is_better=False,
        ),
        "unlikely_rate": share_score(unlikely, len(judged), coverage=coverage),
    }
