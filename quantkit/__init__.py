"""quantkit: quantized fine-tuning of language models by plugins, with names and metadata that are true."""

from quantkit.errors import QuantkitError, UsageError, VerificationError
from quantkit.hookspecs import hookimpl, hookspec
from quantkit.plan import AdapterPlan, MethodInfo, MethodNotes, PlanContext, QuantizationPlan, Stage
from quantkit.spec import QuantizationSpec, QuantMethod

__version__ = "0.1.0"

__all__ = [
    "AdapterPlan",
    "MethodInfo",
    "MethodNotes",
    "PlanContext",
    "QuantMethod",
    "QuantizationPlan",
    "QuantizationSpec",
    "QuantkitError",
    "Stage",
    "UsageError",
    "VerificationError",
    "__version__",
    "hookimpl",
    "hookspec",
]
