"""Which steps score one path? Detect, load as exactly that, measure against what was said, ask, file.

Results are filed task by task under the hash of the content, so that a folder whose files have changed does not inherit them,
and an evaluation that breaks off keeps what it has.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from quantkit import console
from quantkit.errors import UsageError
from quantkit.evaluation.results import ArtifactResult, TaskResult
from quantkit_registry.store import RESULTS, Registry
from quantkit_tools.evaluation.computing import check_computing, load_opened, settle
from quantkit_tools.evaluation.counting import claimed
from quantkit_tools.evaluation.flags import Flags
from quantkit_tools.evaluation.harness import run_harness
from quantkit_tools.evaluation.reference import open_reference

if TYPE_CHECKING:
    from quantkit.evaluation.tasks import Task
    from quantkit.memory import MemoryLog
    from quantkit_tools.opening import Opened


def evaluate_path(flags: Flags, path: str) -> ArtifactResult:
    """Detect, load, measure and score one path, and file its results.

    Raises:
        QuantkitError: the first step that failed says why; nothing is filed then.
    """
    opened = open_named(flags, path)

    def load(memory: "MemoryLog") -> Any:
        with memory.stage("load"):
            return load_opened(flags, opened)

    return score(flags, path, opened, load)


def open_named(flags: Flags, path: str) -> "Opened":
    """Detect one path and say what it is."""
    from quantkit.methods import installed_methods
    from quantkit_tools.opening import open_path

    opened = open_path(
        path,
        installed_methods(),
        registry=Registry(flags.registry),
        device=flags.device,
        method=flags.method,
        base=flags.base,
        trust_remote_code=flags.trust_remote_code,
    )
    check_computing(flags, opened)
    source, statement = opened.detection.evidence[0]
    console.say(f"{opened.name}: {opened.detection.kind}, {opened.source.spec.method} ({source}: {statement})")
    return opened


def score(flags: Flags, path: str, opened: "Opened", load: Callable[["MemoryLog"], Any]) -> ArtifactResult:
    """Load a model, score it, and file each task's result under the hash of its content as soon as it is there.

    With `--pending` tasks that have a result, or that another process is at, are left out; without any nothing is loaded.
    """
    from quantkit.evaluation.cost import bits_per_weight, size_on_disk
    from quantkit.evaluation.journal import Journals
    from quantkit.evaluation.run import compare_with_reference, evaluate_model
    from quantkit.memory import MemoryLog
    from quantkit.modeling import load_tokenizer

    registry, memory = Registry(flags.registry), MemoryLog()
    whole = ArtifactResult(
        path=path,
        name=opened.name,
        artifact=opened.artifact,
        kind=opened.detection.kind,
        quantization=opened.source.spec.to_dict(),
        evidence=[f"{source}: {statement}" for source, statement in opened.detection.evidence],
        memory={},
        results=[],
    )
    with claimed(flags, registry, opened.artifact, tasks_of(flags, opened.system_prompt)) as tasks:
        if not tasks and not flags.harness:
            return whole
        tokenizer = load_tokenizer(opened.tokenizer, trust_remote_code=flags.trust_remote_code)
        reference = open_reference(flags, opened, tokenizer, tasks)
        model = load(memory)
        whole = replace(
            whole, size_bytes=size_on_disk(opened.source.path), bits_per_weight=bits_per_weight(model, opened.source)
        )
        how = settle(flags, model)
        journals = Journals(registry.root / RESULTS / opened.artifact, fresh=flags.fresh)
        for task in tasks:
            results = evaluate_model(
                model,
                tokenizer,
                [task],
                batch_size=flags.batch_size,
                max_new_tokens=flags.max_new_tokens,
                seed=flags.seed,
                memory=memory,
                compared_later=reference is not None,
                latency_prompts=flags.latency_prompts,
                journals=journals,
                settings=how,
            )
            whole = replace(whole, memory=memory.to_dict(), results=[*whole.results, *results])
            for result in results:
                if result.metric in result.scores:  # else it is whole once the reference has been heard
                    file_result(registry, whole, result)
                    journals.discard(result.task)

        def filed(result: TaskResult) -> None:
            nonlocal whole
            result = replace(result, settings={**result.settings, **how})
            whole = replace(whole, memory=memory.to_dict(), results=[*whole.results, result])
            file_result(registry, whole, result)

        run_harness(flags, model, tokenizer, memory, filed)
        if reference is not None:
            results, others = whole.results[: len(tasks)], whole.results[len(tasks) :]
            results = compare_with_reference(
                model, tokenizer, tasks, results, reference, batch_size=flags.batch_size, seed=flags.seed, memory=memory
            )
            whole = replace(whole, memory=memory.to_dict(), results=[*results, *others])
            for result in results:
                file_result(registry, whole, result)
    console.say(f"results are kept in {registry.root / RESULTS / opened.artifact}")
    return whole


def tasks_of(flags: Flags, system_prompt: str | None) -> "list[Task]":
    """Return what is asked; `system_prompt` is the one that a model was trained with, which the flag of that name overrides.

    Raises:
        UsageError: rows cannot be read, or two data sets share a name.
    """
    from quantkit.evaluation.sources import read_tasks

    if flags.harness and not flags.data:
        return []
    return read_tasks(
        [item for item in (flags.data or "").split(",") if item],
        kind=flags.task,
        limit=flags.limit,
        seed=flags.seed,
        system_prompt=system_prompt if flags.system_prompt is None else flags.system_prompt,
    )


def file_result(registry: Registry, whole: ArtifactResult, result: TaskResult) -> None:
    """File one task's result with what is known about the artifact."""
    about = {key: value for key, value in whole.to_dict().items() if key not in ("results", "path")}
    try:
        registry.add_result(whole.artifact, result.task, result.to_dict() | {"artifact": about})
    except OSError as error:
        raise UsageError(
            f"{registry.root}: results cannot be written: {error.strerror or error}; --registry names another folder"
        ) from None
