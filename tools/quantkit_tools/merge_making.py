"""Which steps turn an adapter and its base into a merged artifact?

Observe the adapter on its base, let go of it, fold, write, load what was written, compare, commit. The two models are never in
memory together, and the report is made of what was written, so no step after it can change what it says.
"""

import gc
import shutil
from pathlib import Path
from typing import Any

from quantkit import console
from quantkit.calibration import Calibration, QuantizationWork
from quantkit.environment import describe_environment
from quantkit.memory import MemoryLog, free_bytes
from quantkit.merging.report import Reference, ReportRows, observe_reference
from quantkit.methods import Methods
from quantkit.spec import DENSE_BITS
from quantkit_registry.records import ArtifactRecord, MergeRecord
from quantkit_tools.merge_check import MergeCheck, check_merged
from quantkit_tools.merge_planning import MergeJob

ROOM = 2.5
"""Free memory wanted to compare models, as a multiple of the base's files: in float32 16-bit weights are twice as large."""


def make_merged(
    job: MergeJob, rows: ReportRows, calibration: Calibration | None, tokenizer: Any, methods: Methods
) -> dict[str, Any]:
    """Merge, compare, save; return the record as written.

    Raises:
        UsageError: the adapter cannot be folded in, or the target exists.
        VerificationError: adapter and base do not fit, or the result predicts something else than it must.
    """
    memory = MemoryLog()
    reference: Reference | None = None
    if said := _too_little_memory(job):
        console.warn(f"fidelity of the merge {said}")
    else:
        with memory.stage("observe adapter"):
            reference = _observe(job, rows, methods)
        gc.collect()

    def verify(folder: Path) -> dict[str, Any]:
        if reference is None:
            return {"fidelity": said, "gate": {"outcome": "not judged", "reasons": [said]}}
        check = MergeCheck(
            policy=job.policy,
            recipe=job.recipe,
            stored=job.stored,
            reference=reference,
            rows=rows,
            device=job.device,
            max_lost_gain=job.max_lost_gain,
            trust_remote_code=job.config.trust_remote_code,
        )
        with memory.stage("compare"):
            found, _ = check_merged(folder, check, methods)
        record["memory"].update(memory.to_dict())  # the record being written shares this mapping
        return found

    record = _record(job, calibration).to_dict()
    if job.policy == "requantized":
        return _requantized(job, record, calibration, tokenizer, methods, memory=memory, verify=verify)
    from quantkit.saving import save_written

    def write(folder: Path) -> dict[str, Any]:
        with memory.stage("merge"):
            return write_merged_weights(job, folder, methods)

    return save_written(
        job.target,
        write=write,
        size_bytes=job.size_bytes,
        tokenizer=tokenizer,
        record=record,
        verify=verify,
        overwrite=job.config.overwrite,
    )


def write_merged_weights(job: MergeJob, folder: Path, methods: Methods) -> dict[str, Any]:
    """Write weights and configuration of the merged model; return what was found out."""
    from quantkit.modeling import load_source
    from quantkit.storable import make_generation_config_saveable, store_dense_as

    model = load_source(_source(job), methods, device=job.device, trust_remote_code=job.config.trust_remote_code)
    model = store_dense_as(methods.post_train_merge(job.recipe, model), job.dtype)
    make_generation_config_saveable(model)
    model.save_pretrained(folder)
    return {}


def _source(job: MergeJob) -> Any:
    from dataclasses import replace

    from quantkit.spec import QuantizationSpec

    source = job.opened.source
    if job.policy != "base":
        return source
    return replace(source, base=job.into, revision=job.into_revision, plan=None, spec=QuantizationSpec.dense("float32"))


def _observe(job: MergeJob, rows: ReportRows, methods: Methods) -> Reference:
    from quantkit.modeling import load_source

    trust = job.config.trust_remote_code
    model = load_source(job.opened.source, methods, device=job.device, trust_remote_code=trust)
    return observe_reference(model, rows)


def _requantized(
    job: MergeJob,
    record: dict[str, Any],
    calibration: Calibration | None,
    tokenizer: Any,
    methods: Methods,
    *,
    memory: MemoryLog,
    verify: Any,
) -> dict[str, Any]:
    from quantkit.modeling import load_source
    from quantkit.saving import save_artifact
    from quantkit.storable import store_dense_as
    from quantkit_tools.merge_in_run import quantize_again

    trust = job.config.trust_remote_code
    with memory.stage("merge"):
        model = load_source(job.opened.source, methods, device=job.device, trust_remote_code=trust)
        model = methods.post_train_merge(job.recipe, model)
    with memory.stage("quantize again"), console.progress("requantize: blocks", _blocks(model), unit="blocks") as bar:
        work = QuantizationWork(
            device=job.device, folder=job.work, identity=job.opened.artifact, report=lambda _: bar.advance(1)
        )
        model = quantize_again(model, job.recipe, methods, calibration, work)
    written = save_artifact(
        job.target,
        model=store_dense_as(model, job.dtype),
        tokenizer=tokenizer,
        record=record,
        verify=verify,
        overwrite=job.config.overwrite,
    )
    shutil.rmtree(job.work, ignore_errors=True)
    if job.work.parent.is_dir() and not any(job.work.parent.iterdir()):
        job.work.parent.rmdir()
    return written


def _blocks(model: Any) -> int:
    from quantkit.numerics.capture import find_blocks

    return len(find_blocks(model)[1])


def _too_little_memory(job: MergeJob) -> str:
    """Return why models cannot be compared here; empty where they can."""
    files = Path(job.opened.source.base or job.into)
    size = sum(path.stat().st_size for path in files.glob("*.safetensors")) if files.is_dir() else job.whole_bytes // 2
    needed = int(size * ROOM)
    if (free := free_bytes(job.device)) >= needed:
        return ""
    return f"not measured: loading the base needs {console.format_bytes(needed)}, {console.format_bytes(free)} are free"


def _record(job: MergeJob, calibration: Calibration | None) -> ArtifactRecord:
    said = job.record
    dense = job.dtype if job.dtype in DENSE_BITS else "bfloat16"
    return ArtifactRecord(
        name=job.name,
        kind="model",
        quantization=job.stored,
        recipe=job.recipe,
        base=job.base,
        adapter=said.adapter,
        merge=MergeRecord(policy=job.policy, dtype=dense),
        parents=job.parents,
        training=said.training,
        data={**said.data, **({"requantized_on": calibration.to_dict()} if calibration else {})},
        environment=describe_environment(job.device),
        verification={"forced_base": job.forced} if job.forced else {},
    )
