"""From the flags of a run to what a forecast reads, without importing torch.

What `quantkit train` finds out by asking torch (GPUs, data types) is told from files here; where a forecast assumes something,
it says so, and a flag overrides it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from quantkit.adapters import recommend_rank
from quantkit.config import RunConfig
from quantkit.errors import QuantkitError, UsageError
from quantkit.forecasting.constants import Constants
from quantkit.forecasting.forecast import Forecast, forecast_run
from quantkit.forecasting.learning import constants_for
from quantkit.forecasting.machine import expected_dtypes
from quantkit.forecasting.reading import read_config, read_shape
from quantkit.forecasting.settings import RunSettings
from quantkit.forecasting.shape import ModelShape
from quantkit.forecasting.storage import check_groups
from quantkit.methods import Methods, require_usable
from quantkit.plan import AdapterPlan, PeftKind, PlanContext, QuantizationPlan, Stage
from quantkit.spec import DENSE_BITS
from quantkit_registry.store import default_root
from quantkit_tools.methods import device_types
from quantkit_tools.plan_options import SharedOption, methods_of_bases, options_of


@dataclass(frozen=True, slots=True)
class Asked:
    """A model, the run that is asked about, and what is known of the machine."""

    config: RunConfig
    shape: ModelShape
    device: str
    model_config: Mapping[str, Any]
    constants: Constants
    known: Mapping[str, Any]
    """Fields of `RunSettings` that flags of `quantkit plan` set."""
    remarks: tuple[str, ...] = ()
    """What is to be known of the model's description."""
    shared: tuple[SharedOption, ...] = ()
    """Options that were set for all methods that know them."""

    def plan_of(self, methods: Methods, method: str, adapter: AdapterPlan, options: Mapping[str, Any]) -> QuantizationPlan:
        """Return a method's plan for an adapter.

        Raises:
            QuantkitError: the method cannot be used here, refuses the adapter, or its groups do not fit the layers.
        """
        require_usable(methods, [method], self.device)
        if Stage.BASE not in methods.info(method).stages:
            raise UsageError(f"{method} quantizes finished models; nothing is trained on it")
        compute, _ = expected_dtypes(self.device, self.config.compute_dtype)
        context = PlanContext(
            adapter=adapter,
            device=self.device,
            compute_dtype=compute,
            dense_dtype=self._dense_dtype(),
            lm_head_dtype=self.config.lm_head_dtype,
            model_config=self.model_config,
        )
        plan = methods.plan(method, options, context)
        check_groups(plan.spec, self.shape)
        return plan

    def options_of(self, method: str) -> Mapping[str, Any]:
        """Return the options that a method was asked for; where none were, it has its defaults."""
        return self.config.method_options if method == self.config.quant_method else options_of(self.shared, method)

    def saves_dense(self, plan: QuantizationPlan) -> bool:
        """Return whether a run of this plan folds its adapters into dense weights."""
        return self.config.merge_after_train and self.config.merge != "requantized" and plan.adapter.kind != "NoPeft"

    def settings(self, plan: QuantizationPlan, methods: Methods) -> RunSettings:
        """Return what a forecast of this plan reads."""
        _, arithmetic = expected_dtypes(self.device, self.config.compute_dtype)
        tokens = self.config.calib_rows * self.config.calib_length if methods.wants_calibration(plan) else 0
        known = {"calibration_tokens": tokens, **self.known}
        exactly = methods.folds_exactly(plan.method)
        return RunSettings.of(self.config, plan, device=self.device, arithmetic=arithmetic, folds_exactly=exactly, **known)

    def forecast(self, plan: QuantizationPlan, methods: Methods) -> Forecast:
        """Return the forecast of a plan."""
        return forecast_run(self.shape, self.settings(plan, methods), self.constants)

    def adapter(self, kind: PeftKind | None = None) -> AdapterPlan:
        """Return the adapter asked for, or one of another kind with its settings as far as they fit that kind."""
        asked = self.config.adapter_plan(recommend_rank(self.shape.parameters))
        if kind is None or kind == asked.kind:
            return asked
        return replace(asked, kind=kind, use_rslora=False, init_lora_weights="default")

    def _dense_dtype(self) -> str:
        keeps = not self.config.merge_after_train and self.config.peft_config != "NoPeft"
        return self.shape.dtype if keeps and self.shape.dtype in DENSE_BITS else self.config.save_dtype


@dataclass(frozen=True, slots=True)
class Cell:
    """One method with one kind of adapter: a forecast, or the reason why there is none."""

    method: str
    kind: str
    forecast: Forecast | None
    reason: str = ""
    note: str = ""
    """What is to be known of the forecast: that another kind of adapter is trained."""

    @property
    def trained(self) -> str:
        """Return the kind of adapter that really is trained."""
        return self.kind if self.forecast is None else self.forecast.settings.adapter.kind


def asked(config: RunConfig, *, known: Mapping[str, Any], shared: Iterable[SharedOption] = ()) -> Asked:
    """Return what is asked about.

    Raises:
        UsageError: the model cannot be read.
    """
    device = device_types()[0] if config.device == "auto" else config.device.partition(":")[0]
    data, file = read_config(config.model_name_or_path, revision=config.revision)
    shape = read_shape(config.model_name_or_path, revision=config.revision, trust_remote_code=config.trust_remote_code)
    constants = constants_for(device, default_root())
    return Asked(config, shape, device, data, constants, known, tuple(_remarks(data, file)), tuple(shared))


def _remarks(data: Mapping[str, Any], file: Path | None) -> Iterator[str]:
    if file is None:
        yield "sizes as quantkit knows them by this name: no file of the model is here, and the hub was not asked"
    stored = data.get("quantization_config")
    if isinstance(stored, Mapping):
        yield (
            f"the model is stored in {stored.get('quant_method', 'a quantized format')} already; the forecast is for the method"
            " named, on a dense base of these sizes"
        )


def cells(question: Asked, methods: Methods) -> list[Cell]:
    """Return every method that works on a base with every kind of adapter, options as asked or the method's defaults."""
    found = []
    for name in methods_of_bases(methods):
        found += [_cell(question, methods, name, kind) for kind in get_args(PeftKind)]
    return found


def _cell(question: Asked, methods: Methods, name: str, kind: PeftKind) -> Cell:
    try:
        plan = question.plan_of(methods, name, question.adapter(kind), question.options_of(name))
        note = "" if plan.adapter.kind == kind else " ".join(plan.notes) or f"{name} trains {plan.adapter.kind}"
        return Cell(name, kind, question.forecast(plan, methods), note=note)
    except QuantkitError as error:
        return Cell(name, kind, None, str(error))
