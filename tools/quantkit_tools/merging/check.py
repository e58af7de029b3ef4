"""Is a merged model, as it lies on the disk, still the one that was trained? Loaded plainly, reported, judged.

Both `quantkit merge` and a run that merges at its end go through here, so that one merge cannot come with less evidence than
another. The folder is judged, not the model in memory: what the format or the loader changes belongs to the result.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from quantkit import console
from quantkit.backends import keep_layout
from quantkit.errors import VerificationError
from quantkit.memory import free_bytes
from quantkit.merging.by_blocks import load_by_blocks
from quantkit.merging.report import MAX_LOST_GAIN, MergeReport, Observed, Reference, ReportRows, compare, observe
from quantkit.methods import Methods
from quantkit.modeling import ModelSource, load_base, load_source
from quantkit.plan import QuantizationPlan
from quantkit.spec import QuantizationSpec
from quantkit.storable import store_dense_as
from quantkit_tools.planning import RunPlan

LARGEST_MEAN_KL = 0.01
"""Mean KL divergence in nats from adapter on its base, above which a merge into that very base, dequantized, is not saved."""
AS_LOADED, IN_FLOAT32 = "merged, as loaded", "merged, in float32"
ROOM = {False: 2.5, True: 10.0}
"""Free memory wanted, as a multiple of the files: 16-bit weights are doubled in float32, 4-bit ones eight times as large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeCheck:
    """What a merged folder is compared with, and how it may be loaded."""

    policy: str
    recipe: QuantizationPlan
    """The plan the adapter was trained by."""
    stored: QuantizationSpec
    """What the folder holds."""
    reference: Reference
    rows: ReportRows
    device: str
    max_lost_gain: float
    trust_remote_code: bool = False

    @classmethod
    def of_run(cls, run: RunPlan, reference: Reference, rows: ReportRows) -> Self:
        """Return how the merge at a run's end is judged: it may lose the share of the gain that its policy usually may."""
        return cls(
            policy=run.merge_policy,
            recipe=run.plan,
            stored=run.stored,
            reference=reference,
            rows=rows,
            device=run.device,
            max_lost_gain=MAX_LOST_GAIN[run.merge_policy],
            trust_remote_code=run.config.trust_remote_code,
        )


def check_merged(folder: Path, check: MergeCheck, methods: Methods) -> tuple[dict[str, Any], Observed | None]:
    """Return `fidelity` and `gate` for the record, and what the model as loaded says; not measured where memory is short.

    On a CPU dense models run block by block from their files; on a GPU only where they would not fit, as that takes longer.

    Raises:
        VerificationError: a model folded into the dequantized base of its adapter predicts something else than the adapter.
    """
    files = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    needed, free = int(files * ROOM[check.stored.is_quantized]), free_bytes(check.device)
    observed = _by_blocks(folder, check) if check.device == "cpu" or free < needed else None
    if observed is None and free < needed:
        said = f"not measured: loading needs {console.format_bytes(needed)}, {console.format_bytes(free)} are free"
        console.warn(f"fidelity of the merge {said}")
        return {"fidelity": said, "gate": {"outcome": "not judged", "reasons": [said]}}, None
    as_loaded, stored = observed or _whole(folder, check, methods)
    report = compare(check.reference, stored, as_loaded, check.rows, policy=check.policy)
    for line in report.lines():
        console.say(line)
    refuse_unfaithful(report, check)
    reasons = report.judge(check.max_lost_gain)
    verdict = {
        "outcome": "failed" if reasons else "passed",
        "reasons": reasons,
        "limits": {"max_lost_gain": check.max_lost_gain},
    }
    return {"fidelity": report.to_dict(), "gate": verdict}, as_loaded


def _by_blocks(folder: Path, check: MergeCheck) -> tuple[Observed, Observed] | None:
    """Return what a dense folder says as loaded and in float32, a block in memory at a time; None where that cannot be done."""
    found = {}
    for dtype, title in (("auto", AS_LOADED), ("float32", IN_FLOAT32)):
        model = load_by_blocks(folder, dtype=dtype, device=check.device, trust_remote_code=check.trust_remote_code)
        if model is None:
            return None
        found[dtype] = observe(model, check.rows, title=title)
    return found["auto"], found["float32"]


def _whole(folder: Path, check: MergeCheck, methods: Methods) -> tuple[Observed, Observed]:
    model = load_plainly(folder, check.stored, methods, device=check.device, trust_remote_code=check.trust_remote_code)
    as_loaded = observe(model, check.rows, title=AS_LOADED)
    model = in_float32(model, folder, check, methods)
    return as_loaded, observe(model, check.rows, title=IN_FLOAT32)


def refuse_unfaithful(report: MergeReport, check: MergeCheck) -> None:
    """Raise `VerificationError` where folding into the adapter's own base gave another model; others are only marked."""
    if check.policy == "dequantized" and report.stored.mean_kl > LARGEST_MEAN_KL:
        raise VerificationError(
            f"the merged model is not the one that was trained on {check.recipe.method}: {report.stored}; a mean KL above"
            f" {LARGEST_MEAN_KL} nats is not saved. The adapter itself can be kept (merge_after_train=False)"
        )


def load_plainly(
    folder: Path, stored: QuantizationSpec, methods: Methods, *, device: str, trust_remote_code: bool = False
) -> Any:
    """Return a folder's model as a user without quantkit loads it; formats that transformers cannot read come by our reader."""
    from quantkit.backends.packed_checkpoints import is_packed_checkpoint

    if is_packed_checkpoint(folder):
        return load_source(ModelSource(path=str(folder), spec=stored), methods, device=device)
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", device_map={"": device}, use_safetensors=True, trust_remote_code=trust_remote_code
        )
    finally:
        if bars:
            logging.enable_progress_bar()
    keep_layout(model)
    return model.eval()


def in_float32(model: Any, folder: Path, check: MergeCheck, methods: Methods) -> Any:
    """Return the same stored weights, computed with in float32; the given model is used up."""
    if not check.stored.is_quantized:
        return store_dense_as(model, "float32")
    del model
    plan = check.recipe.with_changes(compute_dtype="float32")
    return load_base(str(folder), plan=plan, methods=methods, device=check.device, trust_remote_code=check.trust_remote_code)
