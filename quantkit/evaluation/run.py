"""What does a loaded model score on these tasks, and what did measuring it cost?

All parts of a task come from one run over the same rows and prompts: measured apart, on rows or prompts that differ a little,
numbers cannot be put side by side. A reference model is loaded when all tasks have been measured, so that its memory and time
are in no number but its own.
"""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from quantkit.errors import UsageError
from quantkit.evaluation.divergence import Reference, divergence_scores, row_divergences
from quantkit.evaluation.generation import stop_token_ids
from quantkit.evaluation.journal import Journals
from quantkit.evaluation.measuring import Measured, Setup, measure
from quantkit.evaluation.plausibility import answers_under, plausibility_scores
from quantkit.evaluation.rendering import render
from quantkit.evaluation.results import Cost, TaskResult
from quantkit.evaluation.sources import require_distinct_names
from quantkit.evaluation.tasks import Task
from quantkit.memory import MemoryLog


def evaluate_model(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Task],
    *,
    batch_size: int = 32,
    max_new_tokens: int = 64,
    seed: int = 0,
    memory: MemoryLog | None = None,
    reference: Reference | None = None,
    compared_later: bool = False,
    latency_prompts: int | None = 0,
    journals: Journals | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[TaskResult]:
    """Return one result per task; `seed` drives the bootstrap, decoding is greedy and needs none.

    With a `reference` each result also says how far the model is from it (`compare_with_reference`). With `compared_later` the
    caller does that; a task that asks for divergence lacks its main score until then. `latency_prompts` of each task are timed
    one at a time (None chooses how many). With `journals` answers are kept as they end, and those of a run that broke off are
    taken over; who has filed a result discards its journal. `settings` say what else the numbers depend on, of how the model
    was loaded; they are kept with each result.

    Raises:
        UsageError: two tasks share a name, a number is out of range, rows do not fit the model's context, or a task asks for
            divergence and there is no reference.
        VerificationError: a loss is not finite.
    """
    require_distinct_names([task.name for task in tasks])
    for setting, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise UsageError(f"{setting} is {value}; it must be at least 1")
    for task in tasks:
        if task.asks == "divergence" and reference is None and not compared_later:
            raise UsageError(f"task {task.kind!r} compares with a reference model; --reference names it")
    log = MemoryLog() if memory is None else memory
    setup = Setup(
        model=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        seed=seed,
        log=log,
        latency_prompts=latency_prompts,
        journals=journals,
        settings=settings or {},
    )
    results = [_evaluate_task(setup, task) for task in tasks]
    if reference is None:
        return results
    return compare_with_reference(model, tokenizer, tasks, results, reference, batch_size=batch_size, seed=seed, memory=log)


def compare_with_reference(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Task],
    results: Sequence[TaskResult],
    reference: Reference,
    *,
    batch_size: int = 32,
    seed: int = 0,
    memory: MemoryLog | None = None,
) -> list[TaskResult]:
    """Return the results of these tasks with `kl_mean`, `kl_p99` and `top1_agreement` over the response positions, per row too.

    The reference model is loaded here and let go again.

    Raises:
        UsageError: the two models' vocabularies differ.
        VerificationError: a divergence is not finite.
    """
    log = MemoryLog() if memory is None else memory
    with log.stage("reference: load"):
        other = reference.load()
    try:
        compared = []
        for task, result in zip(tasks, results, strict=True):
            rows = render(task, tokenizer, stop_token_ids(model, tokenizer))
            with log.stage(f"{task.name}: divergence"):
                found = row_divergences(model, other, rows, batch_size=batch_size, title=f"{task.name}: divergence")
                texts = [row.text for row in result.rows if row.stopped is not None]
                asked = [row.prompt_ids for row in rows] if texts else []
                told = answers_under(other, tokenizer, asked, texts, batch_size=batch_size, title=f"{task.name}: plausibility")
            vocabulary = int(model.config.get_text_config().vocab_size)
            scores = divergence_scores(found, vocabulary=vocabulary, seed=seed)
            compared.append(
                replace(
                    result,
                    scores={**result.scores, **scores, **plausibility_scores(told, vocabulary=vocabulary, seed=seed)},
                    settings={**result.settings, "reference": reference.name},
                    rows=[replace(row, kl=said.mean_kl) for row, said in zip(result.rows, found, strict=True)],
                )
            )
        return compared
    finally:
        del other
        gc.collect()


def _evaluate_task(setup: Setup, task: Task) -> TaskResult:
    before = len(setup.log.stages)
    measured = measure(setup, task)
    return TaskResult(
        task=task.name,
        kind=task.kind,
        metric=task.metric,
        source=task.source,
        data_fingerprint=task.fingerprint,
        n=len(task.examples),
        seed=setup.seed,
        settings={
            "batch_size": setup.batch_size,
            **measured.settings,
            "dtype": str(setup.model.dtype).removeprefix("torch."),
            **setup.settings,
            "device": str(setup.model.device),
            "system_prompt": task.system_prompt,
            **task.settings(),
        },
        scores=measured.scores,
        cost=_cost(measured, MemoryLog(setup.log.stages[before:])),
        rows=measured.rows,
    )


def _cost(measured: Measured, stages: MemoryLog) -> Cost:
    peaks = stages.overall()
    return Cost(
        generated_tokens=measured.generated_tokens,
        generation_s=round(measured.generation_s, 3),
        tokens_per_s=round(measured.generated_tokens / measured.generation_s, 1) if measured.generation_s else 0.0,
        perplexity_s=round(measured.perplexity_s, 3),
        prefill_tokens_per_s=measured.speed.prefill_tokens_per_s,
        decode_tokens_per_s=measured.speed.decode_tokens_per_s,
        latency_s=measured.speed.latency_s,
        latency_n=measured.speed.latency_n,
        peak_rss_bytes=peaks.peak_rss_bytes,
        peak_allocated_bytes=peaks.peak_allocated_bytes,
        peak_reserved_bytes=peaks.peak_reserved_bytes,
    )
