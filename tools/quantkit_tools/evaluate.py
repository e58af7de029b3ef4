"""What is in these folders, and how good is it? (`quantkit evaluate PATH…`)

Each path is detected, loaded as exactly that (an adapter on the base it was trained on), measured against what was said,
and scored. Several paths run in a process each: one that crashes costs only itself, and peak memory is its own. Adapters of one
base and recipe share a process and the base, and are exchanged on it. Results are filed under the hash of the content, so a
folder whose files have changed does not inherit them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from quantkit import console
from quantkit.errors import UsageError
from quantkit.evaluation.results import ArtifactResult, TaskResult
from quantkit_registry.store import RESULTS, Registry
from quantkit_tools.evaluate_compare import check_baseline, compare_artifacts, show_comparisons, warn_degenerate
from quantkit_tools.evaluate_computing import check_computing, load_opened, settle
from quantkit_tools.evaluate_harness import check_harness, run_harness
from quantkit_tools.evaluate_reference import open_reference
from quantkit_tools.small_flags import read_small_flags

if TYPE_CHECKING:
    from quantkit.evaluation.tasks import Task
    from quantkit.memory import MemoryLog
    from quantkit_tools.opening import Opened

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Flags:
    """Detect, load and score models and adapters; several at once are compared in one table."""

    paths: tyro.conf.Positional[tuple[str, ...]]
    """Folders or hub ids; with --pending none stands for every artifact in the registry."""
    data: Annotated[str | None, tyro.conf.arg(metavar="FILE[,FILE…]")] = None
    """Rows to ask: files, folders, built-in names (arc, openmath, NAME:FILE) or hub ids, separated by commas. Without it,
    two generated sets of one-step arithmetic."""
    task: str = "auto"
    """What is measured: numeric (the last \\boxed{…}), choice (a letter), choice-likelihood (the likeliest option), qa (SQuAD:
    exact match and F1), yesno, label (a few classes), perplexity, divergence (from --reference), a plugin's task, or auto (read
    off the rows)."""
    limit: int | None = None
    """Ask only so many rows of each set, drawn by --seed."""
    batch_size: int = 32
    """Prompts at a time; answers are continued with fewer where the memory does not hold so many."""
    max_new_tokens: int = 64
    """Longest answer in tokens."""
    reference: Annotated[str | None, tyro.conf.arg(metavar="PATH|source")] = None
    """Also say how far the next-token distributions are from this model's: mean and 99th-percentile divergence, agreement.
    source: from what each artifact was made from."""
    latency_prompts: int | None = None
    """Prompts of each set that are timed one at a time, after a warm-up; 0 times none. Default one in 25 rows, 2 to 8."""
    fresh: bool = False
    """Start again where an evaluation broke off, instead of keeping the answers it had."""
    system_prompt: str | None = None
    """Ask with this system prompt instead of the one the model was trained with; "" asks without any."""
    method: str | None = None
    """Method whose recipe the base of a foreign adapter is loaded with, which no file records."""
    base: str | None = None
    """Base model of an adapter, where its own record of it cannot be used."""
    registry: str | None = None
    """Folder that keeps the results; default $QUANTKIT_REGISTRY or artifacts."""
    seed: int = 0
    """Draws the rows of --limit and the bootstrap of perplexity's interval; decoding is greedy."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: str = "auto"
    """Compute in bfloat16, float16 or float32; auto: bfloat16 where the device is fast in it, else float32 (float16 on GPUs),
    and a wider one only for weights that it would round. So a model and its quantizations are computed alike."""
    integer_kernels: bool = False
    """Multiply integers on the CPU, as servers do; for models with int8 weights and int8 activations (DynamicINT8,
    SmoothQuant). Without it their rounded numbers are multiplied in --dtype."""
    trust_remote_code: bool = False
    """Run model code that comes with a checkpoint."""
    harness: Annotated[str | None, tyro.conf.arg(metavar="TASK[,TASK…]")] = None
    """Tasks of lm-eval (EleutherAI) to run on the loaded model; --limit takes their first rows. Needs the extra `harness`."""
    harness_include: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of further task definitions for --harness; code they refer to is run."""
    num_fewshot: int | None = None
    """Worked examples before each row of --harness, where its task does not fix them."""
    apply_chat_template: bool = False
    """Ask the rows of --harness through the model's chat template."""
    pending: bool = False
    """Evaluate only artifacts of the registry, and of those only what has no result yet on these rows under these settings."""
    dry_run: bool = False
    """With --pending: list what has no result yet and why, and stop."""
    baseline: str | None = None
    """Compare the others with this one of the paths; default the best one without a mark, which asks more of the others."""
    json: bool = False
    """Print one JSON object; human text goes to stderr."""


def main(arguments: list[str]) -> int:
    """Run `quantkit evaluate`; the exit code is that of the worst path, 3 where an artifact answers nothing sensible."""
    flags = read_small_flags(Flags, "evaluate", arguments)
    if flags.json:
        console.use_stderr()
    check_harness(flags)
    if flags.pending:
        from quantkit_tools.evaluate_pending import evaluate_pending

        return evaluate_pending(flags)
    if flags.dry_run:
        raise UsageError("--dry-run lists what has no result yet; it goes with --pending")
    if not flags.paths:
        raise UsageError("no path was given; quantkit evaluate FOLDER… names what to evaluate, --pending finds it")
    check_baseline(flags.baseline, flags.paths)
    if len(flags.paths) == 1:
        done, failed = [evaluate_path(flags, flags.paths[0])], list[dict[str, Any]]()
    else:
        from quantkit_tools.evaluate_groups import evaluate_each

        done, failed = evaluate_each(flags)
    compared = show(done, baseline=flags.baseline)
    for failure in failed:
        console.warn(f"{failure['path']} was not evaluated: {failure['error']}")
    if flags.json:
        artifacts = [artifact.to_dict() for artifact in done]
        console.emit_json({"schema_version": SCHEMA_VERSION, "artifacts": artifacts, "failed": failed} | compared)
    return max([int(failure["exit_code"]) for failure in failed] + [warn_degenerate(done)])


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
    from quantkit_tools.evaluate_pending import claimed

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


def show(artifacts: list[ArtifactResult], *, baseline: str | None = None) -> dict[str, Any]:
    """Print one table of all results and one of their paired comparisons; return the latter as plain JSON data."""
    from quantkit.evaluation.table import table_of

    if artifacts:
        columns, rows, caption = table_of(artifacts)
        console.table("Evaluation", columns, rows, caption=caption)
    compared = compare_artifacts(artifacts, baseline=baseline)
    show_comparisons(compared)
    return compared.to_dict()
