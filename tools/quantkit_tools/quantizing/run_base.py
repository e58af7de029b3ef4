"""How does a run train on a base that a method of ours quantizes? The base becomes an artifact first, then the run's base.

So the adapter can say exactly what it was trained on, its evaluation loads the same bytes, and the next run on the same base
and rows skips the quantization. Quantizing in memory, as part of the run, would leave the adapter without a base.
"""

from typing import TYPE_CHECKING, Any

from quantkit import console
from quantkit.calibrating import CalibrationSettings, split_texts
from quantkit.errors import UsageError
from quantkit.files import verify_manifest
from quantkit.gate import limits_for
from quantkit.methods import Methods
from quantkit.modeling import ModelSource
from quantkit.plan import AdapterPlan, PlanContext, QuantizationPlan
from quantkit.spec import QuantizationSpec
from quantkit_registry.fingerprints import fingerprint_base
from quantkit_registry.names import ArtifactName, format_name
from quantkit_registry.records import ArtifactRecord, BaseReference, Parent, read_record
from quantkit_registry.store import Registry
from quantkit_tools.planning import RunPlan
from quantkit_tools.quantizing.making import Making, make_quantized
from quantkit_tools.verdict import report_gate

if TYPE_CHECKING:
    from quantkit.calibrating import Texts
    from quantkit.data import PreparedData

FEWEST_TOKENS = 256
"""Fewest tokens of training rows that a base is calibrated on."""
OF_CALIBRATION = ("seed", "calib_rows", "calib_length", "trunc_train", "max_length", "system_prompt")
"""Settings of a run that decide which text its base is calibrated on."""


def with_quantized_base(run: RunPlan, data: "PreparedData", tokenizer: Any, methods: Methods) -> RunPlan:
    """Return the run with its base replaced by the quantized artifact, which is made unless it is there already.

    Raises:
        UsageError: an artifact of the same name was made otherwise, or there are too few rows to calibrate on.
        VerificationError: the artifact that is there is damaged.
    """
    plan = _base_plan(run, methods)
    settings = CalibrationSettings(
        calib_rows=run.config.calib_rows,
        calib_length=run.config.calib_length,
        calib_min_tokens=FEWEST_TOKENS,
        seed=run.config.seed,
    )
    calibrates = methods.wants_calibration(plan)
    texts = split_texts(data, settings, source=f"training rows of {data.report.source}", calibrates=calibrates)
    named = _named(run, calibrates=calibrates)
    name = format_name(
        ArtifactName.of(base=run.config.model_name_or_path, dataset=None, adapter=plan.adapter, recipe=plan.spec, named=named)
    )
    target = run.target.parent / name
    fingerprint = fingerprint_base(run.base, revision=run.config.revision)
    if target.exists():
        _require_same(target, plan, texts, fingerprint)
        console.say(f"base: {target}, made before from the same weights, recipe and calibration")
    else:
        making = Making(
            source=ModelSource(path=run.config.model_name_or_path, revision=run.config.revision, spec=_dense(plan)),
            plan=plan,
            dtype=plan.compute_dtype,
            name=name,
            target=target,
            device=run.device,
            limits=limits_for(plan.spec.weights_bits, methods.info(plan.method).gate_limits),
            base=BaseReference(name_or_path=run.base, revision=run.config.revision, fingerprint=fingerprint),
            identity=fingerprint,
            data={"name_settings": named} if named else {},
            trust_remote_code=run.config.trust_remote_code,
        )
        console.say(f"base: quantizing {run.config.model_name_or_path} with {plan.method} first")
        report_gate(make_quantized(making, texts, tokenizer, methods))
    entry = Registry(target.parent).entry(target)
    parent = Parent(name=name, artifact=None if entry is None else entry.hash)
    return run.on_base(str(target.resolve()), parent)


def _base_plan(run: RunPlan, methods: Methods) -> QuantizationPlan:
    """Return the recipe of the base alone: nothing is trained, and it is stored in the original's own data type."""
    context = PlanContext(
        stage=run.plan.stage,
        trains=False,
        adapter=AdapterPlan(kind="NoPeft"),
        device=run.device.partition(":")[0],
        compute_dtype=run.base_dtype,
        dense_dtype=run.base_dtype,
        model_config=run.model_config,
    )
    return methods.plan(run.plan.method, run.config.method_options, context)


def _named(run: RunPlan, *, calibrates: bool) -> dict[str, Any]:
    """Return those settings in the run's name that the base depends on, too."""
    own = (*run.config.method_options, *(OF_CALIBRATION if calibrates else ()))
    return {name: value for name, value in run.config.named.items() if name in own}


def _dense(plan: QuantizationPlan) -> QuantizationSpec:
    return QuantizationSpec.dense(plan.compute_dtype)


def _require_same(target: Any, plan: QuantizationPlan, texts: "Texts", fingerprint: str) -> None:
    verify_manifest(target)
    record = read_record(target)
    calibration = record.data.get("calibration") or {}
    wanted = None if texts.calibration is None else texts.calibration.fingerprint
    found = {
        "recipe": _recipe(record) == (plan.spec, dict(plan.options)),
        "original weights": record.base.fingerprint == fingerprint,
        "calibration text": calibration.get("fingerprint") == wanted,
    }
    if differing := [what for what, same in found.items() if not same]:
        raise UsageError(
            f"{target}: holds a base of the same name that differs in its {', '.join(differing)}; move it away, or choose"
            " another output_dir"
        )


def _recipe(record: ArtifactRecord) -> tuple[QuantizationSpec, dict[str, Any]]:
    return record.recipe.spec, dict(record.recipe.options)
