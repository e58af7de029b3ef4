"""What does a loaded model score on these tasks, and what did measuring it cost?

Answers are generated once per task; the metric, its floors, the rates and the degeneration checks all read the same texts.
Perplexity comes from the same rows rendered as a training row would be. Measuring the parts in separate runs, on rows or
prompts that differ a little, gives numbers that cannot be put side by side.
"""

import time
from collections.abc import Sequence
from typing import Any

from quantkit.errors import UsageError
from quantkit.evaluation.degeneration import degeneration_rates
from quantkit.evaluation.generation import Generation, generate, stop_token_ids
from quantkit.evaluation.perplexity import perplexity_score, row_losses
from quantkit.evaluation.rendering import render
from quantkit.evaluation.results import Cost, RowResult, TaskResult
from quantkit.evaluation.statistics import Score
from quantkit.evaluation.tasks import Task
from quantkit.memory import MemoryLog


def evaluate_model(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Task],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    seed: int = 0,
    memory: MemoryLog | None = None,
) -> list[TaskResult]:
    """Return one result per task; `seed` drives the bootstrap, decoding is greedy and needs none.

    Raises:
        UsageError: two tasks share a name, a number is out of range, or rows do not fit the model's context.
        VerificationError: a loss is not finite.
    """
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two data sets are called {name!r}; give one of them another file name")
    for setting, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise UsageError(f"{setting} is {value}; it must be at least 1")
    log = MemoryLog() if memory is None else memory
    return [
        _evaluate_task(model, tokenizer, task, batch_size=batch_size, max_new_tokens=max_new_tokens, seed=seed, log=log)
        for task in tasks
    ]


def _evaluate_task(
    model: Any, tokenizer: Any, task: Task, *, batch_size: int, max_new_tokens: int, seed: int, log: MemoryLog
) -> TaskResult:
    rows = render(task, tokenizer, stop_token_ids(model, tokenizer))
    prompts = [row.prompt_ids for row in rows]
    before = len(log.stages)
    with log.stage(f"{task.name}: generate"):
        started = time.perf_counter()
        answers = generate(
            model, tokenizer, prompts, batch_size=batch_size, max_new_tokens=max_new_tokens, title=f"{task.name}: answers"
        )
        generation_s = time.perf_counter() - started
    with log.stage(f"{task.name}: perplexity"):
        started = time.perf_counter()
        losses = row_losses(model, rows, batch_size=batch_size, title=f"{task.name}: perplexity")
        perplexity_s = time.perf_counter() - started
    texts = [answer.text for answer in answers]
    vocabulary = int(model.config.get_text_config().vocab_size)
    scores: dict[str, Score] = {
        task.metric: task.score(texts),
        "perplexity_response": perplexity_score(losses, rows, over="response", vocabulary=vocabulary, seed=seed),
        "perplexity_all": perplexity_score(losses, rows, over="all", vocabulary=vocabulary, seed=seed),
        **task.rates(texts),
        **degeneration_rates(answers, task),
    }
    generated = sum(len(answer.tokens) for answer in answers)
    peaks = MemoryLog(log.stages[before:]).overall()
    return TaskResult(
        task=task.name,
        kind=task.kind,
        metric=task.metric,
        source=task.source,
        data_fingerprint=task.fingerprint,
        n=len(task.examples),
        seed=seed,
        settings={
            "batch_size": batch_size,
            "max_new_tokens": max_new_tokens,
            "decoding": "greedy",
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "system_prompt": _system_prompt(task),
        },
        scores=scores,
        cost=Cost(
            generated_tokens=generated,
            generation_s=round(generation_s, 3),
            tokens_per_s=round(generated / generation_s, 1),
            perplexity_s=round(perplexity_s, 3),
            peak_rss_bytes=peaks.peak_rss_bytes,
            peak_allocated_bytes=peaks.peak_allocated_bytes,
            peak_reserved_bytes=peaks.peak_reserved_bytes,
        ),
        rows=_rows(task, answers),
    )


def _rows(task: Task, answers: Sequence[Generation]) -> list[RowResult]:
    texts = [answer.text for answer in answers]
    return [
        RowResult(
            row=example.row,
            gold=gold,
            answer=task.parse(answer.text),
            correct=correct,
            stopped=answer.stopped,
            text=answer.text,
        )
        for example, gold, correct, answer in zip(task.examples, task.gold, task.correct(texts), answers, strict=True)
    ]


def _system_prompt(task: Task) -> str | None:
    """Return the one system prompt of the rows; None where there is none or they differ."""
    found = {turn["content"] for example in task.examples for turn in example.messages if turn["role"] == "system"}
    return found.pop() if len(found) == 1 else None
