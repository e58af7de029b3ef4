"""Which steps turn an adapter and its base into a merged artifact?

Fold tensor by tensor into a temporary folder; observe the adapter on its base, let go of it; load what was written, compare,
commit. What cannot be merged is refused before any model is loaded, the two models are never in memory together, and the report
is made of what was written, so no step after it can change what it says.
"""

import gc
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit import console
from quantkit.calibration import Calibration, QuantizationWork
from quantkit.environment import describe_environment
from quantkit.files import remove_work
from quantkit.memory import MemoryLog, free_bytes
from quantkit.merging.report import ReportRows, observe_reference
from quantkit.merging.requantize import requantize
from quantkit.merging.stream import merge_streaming
from quantkit.methods import Methods
from quantkit.modeling import load_source
from quantkit.saving import finish_written, save_artifact
from quantkit.storable import store_dense_as
from quantkit_registry.fingerprints import fingerprint_base
from quantkit_registry.records import ArtifactRecord, MergeRecord
from quantkit_tools.merging.check import MergeCheck, check_merged
from quantkit_tools.merging.planning import MergeJob

if TYPE_CHECKING:
    from quantkit.merging.prepared import Merged

ROOM = 2.5
"""Free memory wanted to compare models, as a multiple of the base's files: in float32 16-bit weights are twice as large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merging:
    """A job with all that it needs: the rows it is judged on, the text weights are rounded on, the log of its stages."""

    job: MergeJob
    rows: ReportRows
    calibration: Calibration | None
    methods: Methods
    memory: MemoryLog = field(default_factory=MemoryLog)


def make_merged(merging: Merging, tokenizer: Any) -> dict[str, Any]:
    """Merge, compare, save; return the record as written.

    Raises:
        UsageError: the adapter cannot be folded in, or the target exists.
        VerificationError: adapter and base do not fit, or the result predicts something else than it must.
    """
    if merging.job.policy == "requantized":
        return _requantized(merging, tokenizer)
    return _streamed(merging)


def compare(merging: Merging, folder: Path) -> dict[str, Any]:
    """Return report and verdict on a written folder, for its record; the adapter on its base is observed first.

    Raises:
        VerificationError: a model folded into the base of its own adapter predicts something else.
    """
    job, methods = merging.job, merging.methods
    if said := _too_little_memory(job):
        console.warn(f"fidelity of the merge {said}")
        return {"fidelity": said, "gate": {"outcome": "not judged", "reasons": [said]}}
    trust = job.config.trust_remote_code
    with merging.memory.stage("observe adapter"):
        model = load_source(job.opened.source, methods, device=job.device, trust_remote_code=trust)
        reference = observe_reference(model, merging.rows).of_losses()
        del model
        gc.collect()
    check = MergeCheck(
        policy=job.policy,
        recipe=job.recipe,
        stored=job.stored,
        reference=reference,
        rows=merging.rows,
        device=job.device,
        max_lost_gain=job.max_lost_gain,
        trust_remote_code=trust,
    )
    with merging.memory.stage("compare"):
        found, _ = check_merged(folder, check, methods)
    return found


def written_by(
    write: Callable[[Callable[[Path, "Merged"], None]], object],
    record: Callable[[], ArtifactRecord],
    judge: Callable[[Path], Mapping[str, Any]],
    memory: MemoryLog,
) -> dict[str, Any]:
    """Let a model be folded tensor by tensor, have the folder judged, add its record; return the record as written.

    `write` gets what is to be called with the folder before it appears under its name.
    """
    from quantkit.backends.bitsandbytes import quiet

    written: dict[str, Any] = {}
    stage = ExitStack()

    def finish(folder: Path, merged: "Merged") -> None:
        stage.close()
        said = record().to_dict()
        said["verification"] = {**said["verification"], "merge": merged.to_dict()}
        written.update(finish_written(folder, said, verify=_with_memory(judge, said, memory)))

    quiet()
    with stage:
        stage.enter_context(memory.stage("merge"))
        write(finish)
    return written


def _streamed(merging: Merging) -> dict[str, Any]:
    """Fold one tensor at a time; nothing but the report ever loads a model."""
    job, config = merging.job, merging.job.config

    def write(finish: Any) -> None:
        merge_streaming(
            job.into,
            job.opened.source.path,
            job.target,
            fingerprint=fingerprint_base(job.into, revision=job.into_revision),
            policy="base" if job.policy == "base" else "dequantized",
            dtype=job.dtype,
            recipe=job.recipe,
            recorded_base=job.recorded_base,
            force_base=job.forced,
            methods=merging.methods,
            device=job.device,
            revision=job.into_revision,
            trust_remote_code=config.trust_remote_code,
            overwrite=config.overwrite,
            finish=finish,
        )

    return written_by(write, lambda: _record(merging), lambda folder: compare(merging, folder), merging.memory)


def _requantized(merging: Merging, tokenizer: Any) -> dict[str, Any]:
    job, memory, methods = merging.job, merging.memory, merging.methods
    with memory.stage("merge"):
        trust = job.config.trust_remote_code
        model = load_source(job.opened.source, methods, device=job.device, trust_remote_code=trust)
        model = methods.post_train_merge(job.recipe, model)
    with memory.stage("quantize again"), console.progress("requantize: blocks", _blocks(model), unit="blocks") as bar:
        work = QuantizationWork(
            device=job.device, folder=job.work, identity=job.opened.artifact, report=lambda _: bar.advance(1)
        )
        model = requantize(model, job.recipe, methods, merging.calibration, work)
    record = _record(merging).to_dict()
    written = save_artifact(
        job.target,
        model=store_dense_as(model, job.dtype),
        tokenizer=tokenizer,
        record=record,
        verify=_with_memory(lambda folder: compare(merging, folder), record, memory),
        overwrite=job.config.overwrite,
    )
    remove_work(job.work)
    return written


def _with_memory(
    judge: Callable[[Path], Mapping[str, Any]], record: Mapping[str, Any], memory: MemoryLog
) -> Callable[[Path], Mapping[str, Any]]:
    """Return what judges a written folder and then adds the stages' memory to `record`; what is written shares the mapping."""

    def verify(folder: Path) -> Mapping[str, Any]:
        found = judge(folder)
        record["memory"].update(memory.to_dict())
        return found

    return verify


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


def _record(merging: Merging) -> ArtifactRecord:
    job, said = merging.job, merging.job.record
    rounded = {"requantized_on": merging.calibration.to_dict()} if merging.calibration else {}
    return ArtifactRecord(
        name=job.name,
        kind="model",
        quantization=job.stored,
        recipe=job.recipe,
        base=job.base,
        adapter=said.adapter,
        merge=MergeRecord(policy=job.policy, dtype=job.dtype),
        parents=job.parents,
        training=said.training,
        data={**said.data, **rounded},
        environment=describe_environment(job.device),
        verification={"forced_base": job.forced} if job.forced else {},
    )
