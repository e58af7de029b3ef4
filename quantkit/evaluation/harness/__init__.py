"""What does EleutherAI's lm-eval measure on exactly the model that was loaded here?

Tasks that papers and leaderboards name are run by the harness they were defined in; results are filed like ours, with
intervals, floors and rows, and with lm-eval's own numbers beside them. Writing these tasks anew would give numbers that
compare with nobody's. Needs the extra `harness`.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.errors import QuantkitError, UsageError
from quantkit.evaluation.harness.groups import group_result
from quantkit.evaluation.harness.model import SOFTMAX_DTYPE, quiet, require_harness, wrap
from quantkit.evaluation.harness.tasks import KIND, filed_as, load_tasks
from quantkit.evaluation.results import Cost, TaskResult
from quantkit.memory import MemoryLog

BOOTSTRAPS = 1000
"""Draws behind the standard errors that lm-eval itself reports where it has no formula."""


def evaluate_harness(
    model: Any,
    tokenizer: Any,
    names: Sequence[str],
    *,
    include: str | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    apply_chat_template: bool = False,
    system_prompt: str | None = None,
    batch_size: int = 32,
    seed: int = 0,
    memory: MemoryLog | None = None,
    on_result: Callable[[TaskResult], None] | None = None,
) -> list[TaskResult]:
    """Return one result per task of lm-eval, members of groups before the groups' own.

    `limit` takes the first rows, as lm-eval does; `system_prompt` is lm-eval's `system_instruction`. `on_result` hears of each
    result as soon as it is there.

    Raises:
        UsageError: lm-eval is not installed, a task is unknown or cannot be run as asked.
        VerificationError: wrapping the model changed it, or lm-eval's numbers do not follow from its rows.
    """
    version = require_harness()
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; at least one row is needed")
    if apply_chat_template and not getattr(tokenizer, "chat_template", None):
        raise UsageError("--apply-chat-template: the model's tokenizer has no chat template; leave the flag out")
    log, training = MemoryLog() if memory is None else memory, model.training
    settings = {
        "harness": "lm-eval",
        "harness_version": version,
        "limit": limit,
        "apply_chat_template": apply_chat_template,
        "system_prompt": system_prompt or None,
        "batch_size": batch_size,
        "softmax_dtype": SOFTMAX_DTYPE,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
    }
    with quiet():
        _seed_everything(seed)
        loaded = load_tasks(names, include=include, num_fewshot=num_fewshot, seed=seed)
        wrapped = wrap(model, tokenizer, batch_size=batch_size)
        found: dict[str, TaskResult] = {}
        reported: dict[str, Mapping[str, Any]] = {}
        run = _Run(wrapped, settings, seed, log)
        for name, task in loaded.tasks.items():
            found[name], reported[name] = run.one(name, task)
            if on_result is not None:
                on_result(found[name])
        groups = [
            group_result(group, {task.task_name: found[task.task_name] for task in group.get_all_tasks()}, reported)
            for group in loaded.groups.values()
            if group.has_aggregation
        ]
    model.train(training)
    if on_result is not None:
        for group in groups:
            on_result(group)
    return [*found.values(), *groups]


@dataclass(frozen=True, slots=True)
class _Run:
    """The wrapped model and what all tasks of a run have in common."""

    wrapped: Any
    settings: Mapping[str, Any]
    seed: int
    log: MemoryLog

    def one(self, name: str, task: Any) -> tuple[TaskResult, Mapping[str, Any]]:
        """Run one task and return its result, with the numbers as lm-eval reports them."""
        from quantkit.evaluation.harness.scores import judge

        before, tokens = len(self.log.stages), self.wrapped.generated_tokens
        self.wrapped.title = filed_as(name)
        started = time.perf_counter()
        with self.log.stage(f"{filed_as(name)}: lm-eval"):
            output = self._lm_eval(name, task)
        seconds, generated = time.perf_counter() - started, self.wrapped.generated_tokens - tokens
        samples, numbers = output["samples"][name], output["results"][name]
        judged = judge(task, samples, numbers, seed=self.seed, tokens_in=self.wrapped.tokens_in)
        peaks = MemoryLog(self.log.stages[before:]).overall()
        own = {
            "task_version": task.VERSION,
            "output_type": task.OUTPUT_TYPE,
            "num_fewshot": task.get_config("num_fewshot"),
            "generation_kwargs": task.get_config("generation_kwargs"),
            "as_reported": {key: value for key, value in numbers.items() if "," in key},
        }
        result = TaskResult(
            task=filed_as(name),
            kind=KIND,
            metric=next(iter(judged.scores)),
            source=_source(name, task),
            data_fingerprint=_fingerprint(samples),
            n=len(judged.rows),
            seed=self.seed,
            settings=_plain({**self.settings, **own}),
            scores=judged.scores,
            cost=Cost(
                generated_tokens=generated,
                generation_s=round(seconds, 3) if generated else 0.0,
                tokens_per_s=round(generated / seconds, 1),
                perplexity_s=0.0 if generated else round(seconds, 3),
                peak_rss_bytes=peaks.peak_rss_bytes,
                peak_allocated_bytes=peaks.peak_allocated_bytes,
                peak_reserved_bytes=peaks.peak_reserved_bytes,
            ),
            rows=judged.rows,
        )
        return result, numbers

    def _lm_eval(self, name: str, task: Any) -> Any:
        from lm_eval.evaluator import evaluate

        try:
            return evaluate(
                lm=self.wrapped,
                task_dict={"tasks": {name: task}, "groups": {}},
                limit=self.settings["limit"],
                bootstrap_iters=BOOTSTRAPS,
                system_instruction=self.settings["system_prompt"],
                apply_chat_template=self.settings["apply_chat_template"],
                fewshot_as_multiturn=self.settings["apply_chat_template"],
            )
        except Exception as error:
            raise QuantkitError(f"lm-eval task {name} failed: {type(error).__name__}: {error}") from error


def _source(name: str, task: Any) -> str:
    parts = [task.get_config(key) for key in ("dataset_path", "dataset_name")]
    split = task.get_config("test_split") or task.get_config("validation_split")
    return f"lm-eval task {name} ({', '.join(str(part) for part in [*parts, split] if part)})"


def _fingerprint(samples: Sequence[Mapping[str, Any]]) -> str:
    """Return a sha256 over the rows and their targets; prompts depend on settings and are no data."""
    digest, seen = hashlib.sha256(), set[int]()
    for sample in samples:
        if sample["doc_id"] not in seen:  # each filter logs every row
            seen.add(sample["doc_id"])
            digest.update(f"{sample['doc_hash']} {sample['target_hash']}\n".encode())
    return digest.hexdigest()


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON data: what JSON cannot hold (functions of a task, not a number) as text."""
    found: dict[str, Any] = json.loads(json.dumps(data, default=str), parse_constant=str)
    return found


def _seed_everything(seed: int) -> None:
    """Seed what lm-eval's own command seeds; tasks draw their shots from these."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
