"""Which hooks may a plugin implement? They stand here in the order a run reaches them.

Those that begin with `declare` are asked of every plugin. The others are dispatched to the plugin that owns the method of the
plan: an implementation needs no guard at its top. A plugin that declares no method may only wrap (`@hookimpl(wrapper=True)`)
and declare tasks. Models are `transformers.PreTrainedModel`; they are annotated `Any` so that
reading the hooks imports no torch.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

from quantkit.calibration import Calibration, QuantizationWork
from quantkit.evaluation.tasks.base import Task
from quantkit.plan import MethodInfo, PlanContext, QuantizationPlan

if TYPE_CHECKING:
    from quantkit.exporting.answers import Row

hookspec = pluggy.HookspecMarker("quantkit")
hookimpl = pluggy.HookimplMarker("quantkit")


@hookspec
def declare_method() -> MethodInfo:  # type: ignore[empty-body]
    """Describe the method; import nothing heavy here or at the top of the module."""


@hookspec
def declare_tasks() -> Sequence[type[Task]]:  # type: ignore[empty-body]
    """Name further kinds of evaluation task, words of `quantkit evaluate --task`; import nothing heavy."""


@hookspec
def declare_exports() -> Mapping[str, "Row"]:  # type: ignore[empty-body]
    """Say what `quantkit export` can make of storage kinds that are the method's own; import nothing heavy."""


@hookspec(firstresult=True)
def build_quantization_plan(options: Any, context: PlanContext) -> QuantizationPlan:  # type: ignore[empty-body]
    """Say what will be done; `options` is an instance of the declared options class. No torch, no files."""


@hookspec(firstresult=True)
def load_kwargs(plan: QuantizationPlan) -> dict[str, Any]:  # type: ignore[empty-body]
    """Return keyword arguments for `from_pretrained` of the base, e.g. a `quantization_config`."""


@hookspec(firstresult=True)
def quantize_model(plan: QuantizationPlan, model: Any, calibration: Calibration | None, work: QuantizationWork) -> Any:
    """Quantize the weights of a dense model in place and return it in its saveable form.

    `work` says on which device, which layers stay dense, where finished blocks are kept and who is told about them. Methods
    whose library quantizes while loading (bitsandbytes) return the model as it is.
    """


@hookspec(firstresult=True)
def prepare_model(plan: QuantizationPlan, model: Any) -> Any:
    """Make a loaded base ready to train adapters on and return it."""


@hookspec(firstresult=True)
def post_train_merge(plan: QuantizationPlan, model: Any) -> Any:
    """Fold the adapters of a `peft.PeftModel` into its base and return a dense `PreTrainedModel` without adapters.

    The base to fold into is the one the adapters were trained against: quantized weights are dequantized first.
    """


@hookspec(firstresult=True)
def export_model(plan: QuantizationPlan, model: Any, target: str) -> Any:
    """Put a loaded model's weights into another storage format in place; return it in the form that `save_pretrained` writes.

    Asked where the method's row in `declare_exports` names the step `plugin`; `target` is a key of that row.
    """
