"""How does a run fold its adapters in at its end? As `quantkit merge` does, tensor by tensor, the trained model let go first.

The finished adapter lies in the run's last checkpoint, which goes when the artifact stands: a run that dies in between goes on
from there. Folding in the model that is in memory anyway is simpler and needs all of it in float32, often more than training
took. That way is left to what the files do not tell: a base that changed when training began (PiSSA), layers of a format that
is not decoded here, a method with a `post_train_merge` of its own, and `requantized`, which rounds blocks of a whole model.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit import console
from quantkit.calibrating import CalibrationSettings, split_texts
from quantkit.calibration import Calibration, QuantizationWork
from quantkit.errors import UsageError, VerificationError
from quantkit.fidelity import compare_logits, probe_logits
from quantkit.memory import MemoryLog
from quantkit.merging.prepared import prepare_merge
from quantkit.merging.report import Reference, ReportRows, observe_reference
from quantkit.merging.requantize import requantize
from quantkit.methods import Methods
from quantkit.training.heap import give_back
from quantkit_registry.fingerprints import fingerprint_base
from quantkit_registry.hub import cached_folder
from quantkit_registry.records import ArtifactRecord
from quantkit_tools.merging.check import LARGEST_MEAN_KL, MergeCheck, check_merged
from quantkit_tools.merging.making import written_by
from quantkit_tools.planning import RunPlan

if TYPE_CHECKING:
    from quantkit.data import PreparedData
    from quantkit.merging.prepared import PreparedMerge
    from quantkit.training.result import TrainingResult

FEWEST_TOKENS = 256
"""Fewest tokens of training rows that weights are rounded on."""


@dataclass(frozen=True, slots=True)
class RunEnd:
    """A run whose adapters are trained and are to be folded in."""

    plan: RunPlan
    data: "PreparedData"
    rows: ReportRows
    result: "TrainingResult"
    tokenizer: Any
    memory: MemoryLog
    methods: Methods

    @property
    def run(self) -> RunPlan:
        """Return the run as it is when it has been trained: on one device."""
        return self.plan.held_whole()

    @property
    def adapter(self) -> Path:
        """Return the checkpoint of the last step: the run's own, or the one it went on from with nothing left to do."""
        given = self.run.config.resume_from_checkpoint
        if isinstance(given, str) and self.result.resumed_from == self.result.steps:
            return Path(given)
        return self.run.checkpoints / f"checkpoint-{self.result.steps}"

    def merge(self, models: list[Any]) -> dict[str, Any]:
        """Fold in, judge, save; return the record as written. The trained model is taken out of `models` and let go.

        Raises:
            VerificationError: the result predicts something else than the adapter on its base.
        """
        with telling_where(self.adapter):
            with self.memory.stage("observe adapter"):
                reference = observe_reference(models[0], self.rows).of_losses()
            with self.memory.stage("prepare merge"):
                prepared = prepare_fold(self.run, self.adapter, self.methods)
            if prepared is None:
                return self._merge_in_memory(models.pop(), reference)
            models.clear()
            let_go()
            return self._stream(prepared, reference)

    def _stream(self, prepared: "PreparedMerge", reference: Reference) -> dict[str, Any]:
        check = MergeCheck.of_run(self.run, reference, self.rows)

        def judge(folder: Path) -> dict[str, Any]:
            with self.memory.stage("compare"):
                return check_merged(folder, check, self.methods)[0]

        def write(finish: Any) -> None:
            prepared.write(self.run.target, overwrite=self.run.config.overwrite, finish=finish)

        written = written_by(write, self._record, judge, self.memory)
        console.say(f"written and read back: {written['verification']['read_back']}")
        return written

    def _merge_in_memory(self, model: Any, reference: Reference) -> dict[str, Any]:
        from quantkit_tools.stages import save

        with self.memory.stage("merge"):
            model, said = merge_in_memory(self.run, model, self.methods, reference=reference, rows=self.rows, data=self.data)
        with self.memory.stage("save"):
            seen: dict[str, Any] = {"methods": self.methods, "reference": reference, "rows": self.rows}
            return save(self.run, model, self.tokenizer, self._record(said), **seen)

    def _record(self, verification: dict[str, Any] | None = None) -> ArtifactRecord:
        from quantkit_tools.stages import make_record

        return make_record(self.plan, data=self.data, training=self.result, memory=self.memory, verification=verification)


@contextmanager
def telling_where(adapter: Path) -> Iterator[None]:
    """Say, where a merge does not end well, where the trained adapter is and how to go on with it."""
    try:
        yield
    except BaseException:
        console.warn(
            f"the trained adapter is in {adapter}; --resume-from-checkpoint {adapter} goes on from there, with"
            " --no-merge-after-train it is kept as it is"
        )
        raise


def prepare_fold(run: RunPlan, adapter: Path, methods: Methods) -> "PreparedMerge | None":
    """Return the run's merge as it will be written tensor by tensor; None, with a word why, where it is done in memory.

    Raises:
        VerificationError: the adapter as it lies there does not belong to the base, or is broken.
    """
    if run.merge_policy == "requantized":
        return None
    original = run.merge_policy == "base"
    if not original and not methods.folds_exactly(run.plan.method):
        console.say(f"{run.plan.method} folds adapters in by a hook of its own: in memory, with the whole model in float32")
        return None
    base = run.config.model_name_or_path if original else run.base
    revision = run.config.revision if original else run.revision
    try:
        folder = Path(base).expanduser() if Path(base).expanduser().is_dir() else cached_folder(base, revision)
        return prepare_merge(
            folder,
            adapter,
            fingerprint=fingerprint_base(folder),
            policy="base" if original else "dequantized",
            dtype=run.config.save_dtype,
            lm_head_dtype=run.config.lm_head_dtype,
            recipe=run.plan,
            methods=methods,
            device=run.device,
            trust_remote_code=run.config.trust_remote_code,
        )
    except UsageError as error:
        if original:
            raise
        console.say(f"{error}. The adapter is folded in in memory instead, which takes the whole model in float32")
        return None


def let_go() -> None:
    """Give back the memory of models that nothing refers to any more."""
    import torch

    gc.collect()
    give_back()
    cuda: Any = torch.cuda
    if cuda.is_initialized():
        cuda.empty_cache()


def merge_in_memory(
    run: RunPlan, model: Any, methods: Methods, *, reference: Reference, rows: ReportRows, data: "PreparedData"
) -> tuple[Any, dict[str, Any]]:
    """Fold the adapters into the model in memory; return it and what was measured on the way, for the record.

    Raises:
        VerificationError: folding into the dequantized base gave a model that predicts something else than the adapter.
    """
    merged = methods.post_train_merge(run.plan, model)
    fold = compare_logits(reference.adapter.logits, probe_logits(merged, rows.ids))
    console.say(f"folded against adapter on its base: {fold}")
    if fold.mean_kl > LARGEST_MEAN_KL:
        raise VerificationError(
            f"the merged model is not the one that was trained on {run.plan.method}: {fold}; a mean KL above"
            f" {LARGEST_MEAN_KL} nats is not saved. merge_after_train=False keeps the adapter"
        )
    said: dict[str, Any] = {"merge": fold.to_dict()}
    if run.merge_policy == "requantized":
        calibration = calibration_of(run, data, rows)
        work = QuantizationWork(device=run.device)
        merged = requantize(merged, run.plan, methods, calibration, work)
        said["requantized_on"] = calibration.to_dict()
    return merged, said


def calibration_of(run: RunPlan, data: "PreparedData", rows: ReportRows) -> Calibration:
    """Return training rows to round on, without those that the result is compared on."""
    settings = CalibrationSettings(
        calib_rows=run.config.calib_rows,
        calib_length=run.config.calib_length,
        calib_min_tokens=FEWEST_TOKENS,
        seed=run.config.seed,
    )
    found = split_texts(replace(data, evaluation=list(rows.rows)), settings, source=f"training rows of {data.report.source}")
    if found.calibration is None:
        raise VerificationError("no calibration text was taken although it was asked for")
    return found.calibration
