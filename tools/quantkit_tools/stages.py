"""Which steps make a run? Plain functions from one step's result to the next, which `train.run` calls in order.

There is no pipeline object: what a step needs stands in its arguments, and leaving one out or putting one between is
editing a dozen lines.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.console import format_bytes, format_duration, say, table, warn
from quantkit.data.encode import EncodedRow
from quantkit.environment import describe_environment
from quantkit.errors import VerificationError
from quantkit.files import remove_folder
from quantkit.layout import counted
from quantkit.memory import MemoryLog, free_bytes, memory_rows
from quantkit.merging.report import Reference, ReportRows, choose_rows
from quantkit.methods import Methods
from quantkit_registry.fingerprints import fingerprint_base
from quantkit_registry.records import ArtifactRecord, BaseReference, MergeRecord
from quantkit_tools.forecast_learning import tell_if_above
from quantkit_tools.merging.check import LARGEST_MEAN_KL, MergeCheck, check_merged, load_plainly
from quantkit_tools.planning import RunPlan

if TYPE_CHECKING:
    from torch import Tensor

    from quantkit.data import PreparedData
    from quantkit.training.result import TrainingResult
    from quantkit.training.start import Start

LARGEST_RELOAD_KL = 1e-4
"""Mean KL divergence in nats between the model in memory and the saved folder, loaded again in the same data type."""
PROBE_TEXT = "The quick brown fox jumps over the lazy dog, and 3 + 4 = 7."
"""What models are compared on where a run has no rows."""


def load_tokenizer(run: RunPlan) -> Any:
    """Load the base's tokenizer."""
    from quantkit import modeling

    config = run.config
    return modeling.load_tokenizer(
        config.model_name_or_path, revision=config.revision, trust_remote_code=config.trust_remote_code
    )


def prepare_rows(run: RunPlan, tokenizer: Any) -> "PreparedData":
    """Read, render and check the run's rows, and print what was found.

    Raises:
        UsageError: rows cannot be read or learnt from.
        VerificationError: training on them would not teach what was meant.
    """
    from quantkit.preflight import ModelFacts, examine
    from quantkit.skeleton import read_stop_tokens
    from quantkit_tools.preflight import read_rows
    from quantkit_tools.preflight_showing import heed

    config = run.config
    stops = read_stop_tokens(config.model_name_or_path, tokenizer, revision=config.revision)
    read = read_rows(config, tokenizer, stops, on_bad_rows=config.on_bad_rows)
    data = read.prepared()
    for line in data.report.lines():
        say(line)
    heed(examine(read, config, ModelFacts.of(run.model_config)), config)
    return data


def load_trainable(run: RunPlan, methods: Methods) -> Any:
    """Load the base as the plan wants it, make it ready to train and attach fresh adapters."""
    from quantkit.modeling import attach_adapter, load_base

    config = run.config
    model = load_base(
        run.base if run.parents else config.model_name_or_path,
        plan=run.plan,
        methods=methods,
        device=run.held_whole().device,
        revision=run.revision,
        trust_remote_code=config.trust_remote_code,
        device_map=config.device_map,
    )
    if config.dataset_name is None:
        return model
    model = attach_adapter(methods.prepare_model(run.plan, model), run.plan.adapter, config.seed)
    if run.plan.adapter.init_lora_weights == "loftq":
        from quantkit.starts import start_from_residual

        start_from_residual(
            model, config.model_name_or_path, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    return model


def find_start(run: RunPlan, data: "PreparedData", tokenizer: Any) -> "Start":
    """Choose the checkpoint to go on from, or step 0, before any weights are read.

    Raises:
        UsageError: checkpoints are in the way, or the one to go on from is another run's.
        VerificationError: no checkpoint is whole.
    """
    from quantkit.training.start import find_start

    where: dict[str, Any] = {"checkpoints": run.checkpoints, "device": run.device}
    return find_start(data, run.config, run.plan, tokenizer=tokenizer, **where)


def train(run: RunPlan, model: Any, data: "PreparedData", tokenizer: Any, begun: "Start | None") -> "TrainingResult":
    """Train the adapters (or, without any, the whole model) in place, from where `find_start` said."""
    from quantkit.training import train

    where: dict[str, Any] = {"checkpoints": run.checkpoints, "device": run.device}
    return train(model, data, run.config, run.plan, tokenizer=tokenizer, begun=begun, **where)


def compared_rows(run: RunPlan, data: "PreparedData | None", tokenizer: Any) -> ReportRows:
    """Return the rows on which models are compared: held-out ones where there are some, else training rows."""
    if data is not None:
        return choose_rows(data, seed=run.config.seed)
    ids = tokenizer(PROBE_TEXT)["input_ids"]
    return ReportRows((EncodedRow(ids, ids, 1),), "a sentence of quantkit's", held_out=True)


def save(
    run: RunPlan,
    model: Any,
    tokenizer: Any,
    record: ArtifactRecord,
    *,
    methods: Methods,
    rows: ReportRows,
    reference: Reference | None = None,
) -> dict[str, Any]:
    """Cast to what is to be stored, write, load again with plain transformers, compare, and only then rename into place.

    `reference` is what a merge is judged against. The record is returned as written.

    Raises:
        VerificationError: what was written does not predict what the model in memory predicts.
    """
    from quantkit.fidelity import probe_logits
    from quantkit.saving import save_artifact
    from quantkit.storable import store_dense_as

    in_memory: Tensor | None = None
    if run.kind == "model":
        one_dtype = run.stored.lm_head_dtype == run.config.save_dtype
        in_memory = None if one_dtype else probe_logits(model, rows.ids)  # a head of its own type is stored, not computed with
        model = store_dense_as(model, run.config.save_dtype, lm_head_dtype=run.config.lm_head_dtype)
        in_memory = probe_logits(model, rows.ids) if in_memory is None else in_memory

    def verify(folder: Path) -> dict[str, Any]:
        return {} if in_memory is None else _reload(run, folder, in_memory, methods, reference=reference, rows=rows)

    written = save_artifact(
        run.target, model=model, tokenizer=tokenizer, record=record.to_dict(), verify=verify, overwrite=run.config.overwrite
    )
    say(f"written and read back: {written['verification']['read_back']}")
    return written


def clear_checkpoints(run: RunPlan) -> None:
    """Remove the checkpoints of a run whose artifact stands, unless it was to write some."""
    if run.checkpoints.exists() and not run.config.save_steps:
        remove_folder(run.checkpoints)


def _reload(
    run: RunPlan, folder: Path, in_memory: "Tensor", methods: Methods, *, reference: Reference | None, rows: ReportRows
) -> dict[str, Any]:
    from quantkit.fidelity import compare_logits, probe_logits

    trust = run.config.trust_remote_code
    if reference is not None:
        check = MergeCheck.of_run(run, reference, rows)
        found, observed = check_merged(folder, check, methods)
        logits = None if observed is None else observed.logits
    else:
        found, logits = {}, None
        needed = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        if (free := free_bytes(run.device)) < 1.5 * needed:
            said = f"not done: loading it again needs {format_bytes(int(1.5 * needed))}, {format_bytes(free)} are free"
            warn(f"reload check {said}")
        else:
            again = load_plainly(folder, run.stored, methods, device=run.device, trust_remote_code=trust)
            logits = probe_logits(again, rows.ids)
    if logits is None:
        return found | {"reload": "not done: too little memory"}
    reloaded = compare_logits(in_memory, logits)
    say(f"loaded again against in memory: {reloaded}")
    exact = run.stored.lm_head_dtype == run.config.save_dtype and not run.stored.is_quantized
    if reloaded.mean_kl > (LARGEST_RELOAD_KL if exact else LARGEST_MEAN_KL):
        raise VerificationError(f"the saved model is not the one in memory: {reloaded}; nothing was kept")
    return {"reload": reloaded.to_dict()} | found


def make_record(
    run: RunPlan,
    *,
    data: "PreparedData | None",
    training: "TrainingResult | None",
    memory: MemoryLog,
    verification: dict[str, Any] | None = None,
) -> ArtifactRecord:
    """Put together what `quantization_metadata.json` will say."""
    config = run.config
    facts: dict[str, Any] = {}
    if data is not None:
        facts = {"dataset": config.dataset_name, "fingerprint": data.fingerprint, "system_prompt": data.system_prompt}
        facts |= data.report.to_dict() | ({"name_settings": config.named} if config.named else {})
    return ArtifactRecord(
        name=run.name,
        kind="adapter" if run.kind == "adapter" else "model",
        quantization=run.stored,
        recipe=run.plan,
        base=BaseReference(
            name_or_path=run.base,
            revision=run.revision,
            fingerprint=fingerprint_base(run.base, revision=run.revision),
        ),
        parents=run.parents,
        adapter=None if run.plan.adapter.kind == "NoPeft" else run.plan.adapter,
        merge=MergeRecord(policy=run.merge_policy, dtype=config.save_dtype) if run.merges else None,
        training={} if training is None else training.to_dict() | {"settings": config.to_dict()},
        data=facts,
        memory=memory.to_dict(),
        environment=describe_environment(run.device),
        verification=verification or {},
    )


def report(run: RunPlan, training: "TrainingResult | None", memory: MemoryLog) -> None:
    """Print what the run did and what it took."""
    columns, rows = memory_rows(memory)
    table("Peak memory", columns, rows)
    tell_if_above(memory)
    if training is not None:
        ends = training.losses if training.steps == 1 else (training.losses[0], training.losses[-1])
        say(
            f"trained {counted(training.steps, 'step')} in {format_duration(training.duration_s)}: loss"
            f" {' -> '.join(f'{loss:.3f}' for loss in ends)}, {training.tokens_per_s:,.0f} tokens/s"
        )
        if training.evaluation_loss_after is not None:
            before = training.evaluation_loss_before
            course = "" if before is None else f"{before:.3f} -> "
            many = counted(training.evaluation_rows, "held-out row")
            say(f"loss of {many}: {course}{training.evaluation_loss_after:.3f}")
    say(f"artifact: {run.target}", style="bold")
    say(f"next: quantkit evaluate {run.target}")
