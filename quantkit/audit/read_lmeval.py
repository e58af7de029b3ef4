"""What do results of the EleutherAI harness (lm-eval 0.4) say, and the samples filed beside them?

Its results hold n, standard errors, versions and settings of every task; its samples, where they were logged, the answer to
each question. Percent and share are told apart by the metric, as the harness has it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.audit.aliases import metric_of
from quantkit.audit.facts import Measured, Number, Reading, Row
from quantkit.audit.plain import as_count, as_number, as_object, as_objects, as_text, setting_text
from quantkit.audit.tables import read_jsonl
from quantkit.audit.values import plain_name
from quantkit.errors import UsageError

KIND, SAMPLES = "lm-eval", "lm-eval samples"
BESIDE = ("configs", "n-samples", "n-shot", "versions", "lm_eval_version")
NO_METRICS = ("alias", "name", "sample_len", "sample_count")
PERCENT = ("exact", "best_exact", "best_f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1")
"""Metrics of its SQuAD v2 task, which it reports between 0 and 100."""
COUNTED = ("acc", "acc_norm", "exact_match", "exact")


def read(file: str, data: Any) -> Reading | None:
    """Return what a `results_*.json` says; None for anything else."""
    if not isinstance(data, Mapping) or not isinstance(data.get("results"), dict) or not any(key in data for key in BESIDE):
        return None
    groups = {name for name, members in as_object(data.get("group_subtasks")).items() if members}
    logged, faults = _logged(file, as_object(data.get("samples")))
    measured = []
    for task, metrics in data["results"].items():
        if not isinstance(metrics, dict):
            faults.append(f"{file}: results.{task} is {type(metrics).__name__}; an object of metrics is wanted")
        elif task not in groups:
            measured.append(_measured(file, data, str(task), metrics, logged.get(str(task), ())))
    return Reading(file=file, kind=KIND, measured=tuple(measured), faults=tuple(faults))


def samples_beside(file: str) -> dict[str, str]:
    """Return the sample files that were written together with a results file → their task."""
    path = Path(file)
    date = path.stem.removeprefix("results_")
    if date == path.stem:
        return {}
    ends = f"_{date}.jsonl"
    found = sorted(item for item in path.parent.glob("samples_*.jsonl") if item.name.endswith(ends))
    return {str(item): item.name.removeprefix("samples_").removesuffix(ends) for item in found}


def read_samples_file(file: str, lines: list[tuple[int, Any]]) -> Reading | None:
    """Return what a `samples_*.jsonl` says by itself; None for anything else."""
    samples = [line for _, line in lines if isinstance(line, dict)]
    if not samples or "doc_id" not in samples[0] or not {"resps", "filtered_resps"} & set(samples[0]):
        return None
    stem = Path(file).stem.removeprefix("samples_")
    measured = Measured(
        source="lm-eval",
        file=file,
        where="",
        model=Path(file).parent.name or "unnamed",
        task=stem,
        numbers=(),
        rows=_rows(samples),
    )
    return Reading(file=file, kind=SAMPLES, measured=(measured,))


def _logged(file: str, inside: Mapping[str, Any]) -> tuple[dict[str, list[Mapping[str, Any]]], list[str]]:
    logged = {str(task): as_objects(samples) for task, samples in inside.items()}
    faults = []
    for path, task in samples_beside(file).items():
        try:
            logged[task] = [line for _, line in read_jsonl(Path(path)) if isinstance(line, dict)]
        except UsageError as error:
            faults.append(str(error))
    return logged, faults


def _measured(
    file: str, data: Mapping[str, Any], task: str, metrics: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> Measured:
    config, about = as_object(data.get("config")), as_object(as_object(data.get("configs")).get(task))
    count = as_object(as_object(data.get("n-samples")).get(task))
    arguments = _arguments(config.get("model_args"))
    four, eight = (arguments.get(f"load_in_{bits}bit", "").lower() in ("true", "1") for bits in (4, 8))
    adapter = arguments.get("peft")
    kwargs = as_object(about.get("generation_kwargs"))
    generates = about.get("output_type") == "generate_until"
    sampled = kwargs.get("do_sample") is True and kwargs.get("temperature") not in (0, 0.0)
    template = as_text(data.get("chat_template_sha")) or ("none" if data.get("chat_template") in (None, "") else "set")
    effective = as_count(count.get("effective"))
    settings = {
        "task_version": setting_text(as_object(data.get("versions")).get(task)),
        "num_fewshot": setting_text(as_object(data.get("n-shot")).get(task)),
        "limit": setting_text(config.get("limit")),
        "chat_template": template,
        "system_prompt": setting_text(data.get("system_instruction_sha")),
        "dtype": setting_text(config.get("model_dtype")),
        "batch_size": setting_text(config.get("batch_size")),
    } | ({"max_new_tokens": setting_text(kwargs.get("max_gen_toks"))} if generates else {})
    return Measured(
        source="lm-eval",
        file=file,
        where=f"results.{task}",
        model=adapter or as_text(data.get("model_name")) or arguments.get("pretrained") or "unnamed",
        task=task,
        numbers=tuple(_numbers(metrics, about)),
        rows=_rows(samples),
        n=effective if effective is not None else as_count(metrics.get("sample_len")),
        method="load_in_4bit" if four else "load_in_8bit" if eight else None,
        bits=4 if four else 8 if eight else None,
        quantized=True if four or eight else None,
        settings=settings,
        seed=None if config.get("random_seed") is None else setting_text(config["random_seed"]),
        greedy=not sampled if generates else None,
        parameters=as_number(config.get("model_num_parameters")),
        base=arguments.get("pretrained") if adapter else None,
    )


def _numbers(metrics: Mapping[str, Any], about: Mapping[str, Any]) -> list[Number]:
    percent = any(str(key).partition(",")[0] == "exact" for key in metrics)
    own_rule = about.get("process_results") is not None or not about.get("output_type")
    found = []
    for key, raw in metrics.items():
        name, _, chosen = str(key).partition(",")
        value = as_number(raw)
        if name in NO_METRICS or name.endswith("_stderr") or value is None:
            continue
        metric = metric_of(plain_name(name))
        scale = 100.0 if percent and (name in PERCENT or name == "f1") else 1.0
        stderr = as_number(metrics.get(f"{name}_stderr,{chosen}" if chosen else f"{name}_stderr"))
        kind = metric.kind if metric else "other"
        found.append(
            Number(
                name=name,
                where=str(key),
                value=value / scale,
                shown=f"{value:.4g}",
                kind=kind,
                countable=name in COUNTED and (not own_rule or name == "exact"),
                step=1e-9,
                stderr=None if stderr is None else stderr / scale,
                higher_is_better=metric.higher_is_better if metric else True,
                main=kind == "share" and name not in PERCENT[1:],
                percent=scale != 1.0,
            )
        )
    return found


def _rows(samples: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    rows = []
    for index, sample in enumerate(samples):
        correct = next((as_number(sample[name]) for name in COUNTED if name in sample), None)
        answer = sample.get("filtered_resps")
        text, spoken = _first_text(sample.get("resps")), _first_text(answer)
        target = sample.get("target")
        golds = [target] if isinstance(target, str | int | float) else target if isinstance(target, list) else None
        chosen = sample.get("filter")
        rows.append(
            Row(
                key=str(sample.get("doc_hash") or sample.get("doc_id", index))[:80] + (f"/{chosen}" if chosen else ""),
                text=text,
                gold=None if golds is None else tuple(str(gold)[:2000] for gold in golds),
                answer=None if spoken == "[invalid]" else spoken,
                correct=None if correct not in (0.0, 1.0) else bool(correct),
            )
        )
    chosen = {row.key.rpartition("/")[2] for row in rows if "/" in row.key}
    first = next((row.key.rpartition("/")[2] for row in rows if "/" in row.key), "")
    return tuple(row for row in rows if len(chosen) < 2 or row.key.endswith(f"/{first}"))


def _first_text(raw: Any) -> str | None:
    """Return the first text inside nested lists, where the answer was written; None for log-likelihoods."""
    for _ in range(3):
        if isinstance(raw, list) and len(raw) >= 1:
            raw = raw[0] if len(raw) == 1 or isinstance(raw[0], list) else raw[0] if isinstance(raw[0], str) else None
    return as_text(raw) if not _is_number(raw) else None


def _is_number(raw: Any) -> bool:
    """Whether a text is a log-likelihood, which the samples spell as text."""
    try:
        return raw is not None and float(raw) < 0 and "." in str(raw)
    except (TypeError, ValueError, OverflowError):
        return False


def _arguments(raw: Any) -> dict[str, str]:
    if isinstance(raw, dict):
        return {str(key): str(value) for key, value in raw.items()}
    parts = (part.partition("=") for part in raw.split(",")) if isinstance(raw, str) else ()
    return {key.strip(): value.strip() for key, _, value in parts}
