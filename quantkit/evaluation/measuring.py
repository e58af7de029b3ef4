"""What is done with a task's rows, by what the task asks for?

Answers are generated once, and the metric, its floors, the rates and the degeneration checks all read the same texts; given
options are weighed by their likelihood; the rows' own tokens are judged as training would render them. Each way gives the same
thing, a `Measured`, so that what is kept of a run does not depend on the kind of task.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from quantkit import __version__
from quantkit.console import say
from quantkit.evaluation.cost import Speed, latency_prompts, measure_speed
from quantkit.evaluation.degeneration import degeneration_rates
from quantkit.evaluation.generation import Generation, generate, stop_token_ids
from quantkit.evaluation.journal import (
    Journal,
    Journals,
    fingerprint_of,
    keep_answer,
    keep_likelihood,
    kept_answers,
    kept_likelihoods,
)
from quantkit.evaluation.likelihood import Likelihood, Request, loglikelihoods
from quantkit.evaluation.perplexity import RowLoss, perplexity_score, row_losses
from quantkit.evaluation.rendering import RenderedRow, option_requests, render
from quantkit.evaluation.results import RowResult
from quantkit.evaluation.statistics import Score
from quantkit.evaluation.tasks import AnswerTask, Asks, ChoiceLikelihood, Task
from quantkit.memory import MemoryLog

LEFT = "were there from a run that broke off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The model, and how it is run."""

    model: Any
    tokenizer: Any
    batch_size: int
    max_new_tokens: int
    seed: int
    log: MemoryLog
    latency_prompts: int | None = 0
    """Prompts timed one at a time; None chooses (`quantkit.evaluation.cost.latency_prompts`)."""
    journals: Journals | None = None
    """Where finished answers are kept for a run that breaks off."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the numbers depend on beyond all this: how the model was loaded."""

    @property
    def vocabulary(self) -> int:
        """Return the number of tokens the model knows."""
        return int(self.model.config.get_text_config().vocab_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one task's rows gave."""

    scores: dict[str, Score]
    rows: list[RowResult]
    generated_tokens: int = 0
    generation_s: float = 0.0
    perplexity_s: float = 0.0
    """Seconds that given tokens were judged for: rows, or options."""
    speed: Speed = field(default_factory=Speed)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the numbers depend on beyond what holds for every kind of task."""


def measure(setup: Setup, task: Task) -> Measured:
    """Do with a task's rows what the task asks for."""
    return WAYS[task.asks](setup, task)


def _answers(setup: Setup, task: Task) -> Measured:
    asked = cast("AnswerTask", task)
    rows = render(task, setup.tokenizer, stop_token_ids(setup.model, setup.tokenizer))
    prompts = [row.prompt_ids for row in rows]
    timed = latency_prompts(setup.latency_prompts, len(prompts))
    answers, kept, generation_s = _generated(setup, task, prompts)
    speed = Speed()
    if timed:
        with setup.log.stage(f"{task.name}: one at a time"):
            speed = measure_speed(
                setup.model,
                setup.tokenizer,
                prompts,
                count=timed,
                max_new_tokens=setup.max_new_tokens,
                title=f"{task.name}: one at a time",
            )
    losses, perplexity_s = _losses(setup, task, rows)
    texts = [answer.text for answer in answers]
    scores = asked.scores(texts, seed=setup.seed)
    return Measured(
        scores={**scores, **_perplexities(setup, rows, losses), **degeneration_rates(answers, asked)},
        rows=_answered(asked, answers, losses),
        generated_tokens=sum(len(answer.tokens) for index, answer in enumerate(answers) if index not in kept),
        generation_s=generation_s,
        perplexity_s=perplexity_s,
        speed=speed,
        settings={"max_new_tokens": setup.max_new_tokens, "decoding": "greedy"}
        | ({"resumed_answers": len(kept)} if kept else {}),
    )


def _generated(setup: Setup, task: Task, prompts: Sequence[Sequence[int]]) -> tuple[list[Generation], Collection[int], float]:
    """Return the answers, the numbers of those that an earlier run had left, and the seconds that the others took."""
    with _journal(setup, task, prompts) as journal:
        kept = {} if journal is None else kept_answers(journal, len(prompts))
        if kept:
            say(f"{task.name}: {len(kept)} of {len(prompts)} answers {LEFT}")
        with setup.log.stage(f"{task.name}: generate"):
            started = time.perf_counter()
            answers = generate(
                setup.model,
                setup.tokenizer,
                prompts,
                batch_size=setup.batch_size,
                max_new_tokens=setup.max_new_tokens,
                title=f"{task.name}: answers",
                known=kept,
                on_answer=None if journal is None else partial(keep_answer, journal),
            )
            return answers, kept.keys(), time.perf_counter() - started


def _journal(setup: Setup, task: Task, requests: Sequence[Any]) -> AbstractContextManager[Journal | None]:
    """Return the journal of these requests under these settings, if any is kept."""
    if setup.journals is None:
        return nullcontext()
    key = {
        "task": task.name,
        "asks": task.asks,
        "requests": fingerprint_of(requests),
        "batch_size": setup.batch_size,
        "max_new_tokens": setup.max_new_tokens,
        "dtype": str(setup.model.dtype),
        "device": str(setup.model.device),
        **setup.settings,
        "version": __version__,
    }
    return setup.journals.open(task.name, key)


def _answered(task: AnswerTask, answers: Sequence[Generation], losses: Sequence[RowLoss]) -> list[RowResult]:
    texts = [answer.text for answer in answers]
    columns = (task.examples, task.gold, task.correct(texts), task.values(texts), answers, losses)
    return [
        RowResult(
            row=example.row,
            gold=gold,
            answer=task.parse(answer.text),
            correct=correct,
            stopped=answer.stopped,
            text=answer.text,
            value=value,
            generated_tokens=len(answer.tokens),
            nll=loss.response_nll,
            nll_tokens=loss.response_tokens,
        )
        for example, gold, correct, value, answer, loss in zip(*columns, strict=True)
    ]


def _options(setup: Setup, task: Task) -> Measured:
    choice = cast("ChoiceLikelihood", task)
    grouped = option_requests(choice, setup.tokenizer, stop_token_ids(setup.model, setup.tokenizer))
    flat: list[Request] = [request for group in grouped for request in group]
    with _journal(setup, task, flat) as journal, setup.log.stage(f"{task.name}: log-likelihood"):
        kept = {} if journal is None else kept_likelihoods(journal, len(flat))
        if kept:
            say(f"{task.name}: {len(kept)} of {len(flat)} likelihoods {LEFT}")
        started = time.perf_counter()
        judged = loglikelihoods(
            setup.model,
            flat,
            batch_size=setup.batch_size,
            title=f"{task.name}: log-likelihood",
            known=kept,
            on_found=None if journal is None else partial(keep_likelihood, journal),
        )
        said, seconds = iter(judged), time.perf_counter() - started
    found: list[list[Likelihood]] = [[next(said) for _ in group] for group in grouped]
    likelihoods = [[value for value, _ in row] for row in found]
    chosen = choice.chosen(likelihoods)
    rows = []
    for at, (example, gold, correct) in enumerate(zip(choice.examples, choice.gold, choice.correct(chosen), strict=True)):
        labels = [option.label for option in choice.choices[at]]
        right = labels.index(gold) if gold in labels else None
        rows.append(
            RowResult(
                row=example.row,
                gold=gold,
                answer=chosen[at],
                correct=correct,
                nll=None if right is None else -likelihoods[at][right],
                nll_tokens=0 if right is None else len(grouped[at][right][1]),
            )
        )
    resumed = {"resumed_likelihoods": len(kept)} if kept else {}
    return Measured(scores=choice.likelihood_scores(likelihoods), rows=rows, perplexity_s=seconds, settings=resumed)


def _tokens(setup: Setup, task: Task) -> Measured:
    rows = render(task, setup.tokenizer, stop_token_ids(setup.model, setup.tokenizer))
    losses, seconds = _losses(setup, task, rows)
    return Measured(
        scores=_perplexities(setup, rows, losses),
        rows=[
            RowResult(
                row=example.row, gold="", answer=None, correct=False, nll=loss.response_nll, nll_tokens=loss.response_tokens
            )
            for example, loss in zip(task.examples, losses, strict=True)
        ],
        perplexity_s=seconds,
    )


def _losses(setup: Setup, task: Task, rows: Sequence[RenderedRow]) -> tuple[list[RowLoss], float]:
    with setup.log.stage(f"{task.name}: perplexity"):
        started = time.perf_counter()
        losses = row_losses(setup.model, rows, batch_size=setup.batch_size, title=f"{task.name}: perplexity")
        return losses, time.perf_counter() - started


def _perplexities(setup: Setup, rows: Sequence[RenderedRow], losses: Sequence[RowLoss]) -> dict[str, Score]:
    return {
        f"perplexity_{over}": perplexity_score(losses, rows, over=over, vocabulary=setup.vocabulary, seed=setup.seed)
        for over in ("response", "all")
    }


WAYS: dict[Asks, Callable[[Setup, Task], Measured]] = {
    "answers": _answers,
    "options": _options,
    "tokens": _tokens,
    "divergence": _tokens,
}
"""What a task asks for to how it is measured; divergence comes on top once the reference model is there."""
