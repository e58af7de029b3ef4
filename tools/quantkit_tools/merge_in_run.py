"""How does a run fold its adapters in while they are still in memory? By the policy of its `merge` setting.

The trained model is at hand, so `dequantized` folds in memory, to the same weights that `quantkit merge` streams from the kept
adapter. `base` needs the original weights, which the run never held where it quantized while loading.
"""

import gc
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from quantkit import console
from quantkit.calibrating import CalibrationSettings, split_texts
from quantkit.calibration import Calibration, QuantizationWork
from quantkit.errors import VerificationError
from quantkit.fidelity import compare_logits, probe_logits
from quantkit.merging.report import Reference, ReportRows
from quantkit.methods import Methods
from quantkit.modeling import ModelSource
from quantkit.plan import QuantizationPlan
from quantkit.spec import QuantizationSpec
from quantkit_tools.merge_check import LARGEST_MEAN_KL
from quantkit_tools.planning import RunPlan

if TYPE_CHECKING:
    from quantkit.data import PreparedData

FEWEST_TOKENS = 256
"""Fewest tokens of training rows that weights are rounded on."""


def merge_adapters(
    run: RunPlan, model: Any, methods: Methods, *, reference: Reference, rows: ReportRows, data: "PreparedData"
) -> tuple[Any, dict[str, Any]]:
    """Fold the adapters in by the run's policy; return the model and what was measured on the way, for the record.

    Raises:
        VerificationError: folding into the dequantized base gave a model that predicts something else than the adapter.
    """
    if run.merge_policy == "base":
        return fold_into_original(run, model, methods), {}
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
        merged = quantize_again(merged, run.plan, methods, calibration, work)
        said["requantized_on"] = calibration.to_dict()
    return merged, said


def fold_into_original(run: RunPlan, model: Any, methods: Methods) -> Any:
    """Return the original base, in float32, with the adapters folded in; the given `PeftModel` is left to be freed."""
    from quantkit.merging import fold_adapters
    from quantkit.modeling import load_source

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_embedding_layers=False)
        del model
        gc.collect()
        source = ModelSource(
            path=folder,
            kind="adapter",
            base=run.config.model_name_or_path,
            revision=run.config.revision,
            spec=QuantizationSpec.dense("float32"),
        )
        adapted = load_source(source, methods, device=run.device, trust_remote_code=run.config.trust_remote_code)
        return fold_adapters(adapted)


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


def quantize_again(
    model: Any, plan: QuantizationPlan, methods: Methods, calibration: Calibration | None, work: QuantizationWork
) -> Any:
    """Return an exactly merged float32 model quantized by the recipe of its base, rounded with data."""
    from quantkit.merging.requantize import requantize

    return requantize(model, plan, methods, calibration, work)
