"""What do methods have in common that store integers with one scale a group?

Their declaration (`integer_method`), their first options (`IntegerOptions`) and the plan those make (`integer_plan`), so that
equal settings of two methods are equal facts, equal tags and equal words about who serves them. Spelling out the spec in each
plugin was a dozen lines nine times, and one of the nine did not say which kernels read what it stores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from quantkit.errors import UsageError
from quantkit.plan import MethodInfo, MethodNotes, PlanContext, QuantizationPlan, Stage
from quantkit.spec import QuantizationSpec

RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "at_least_one": (lambda value: value >= 1, "must be at least 1"),
    "positive": (lambda value: 0 < value < float("inf"), "must be a positive number"),
    "not_negative": (lambda value: 0 <= value < float("inf"), "must be 0 or a positive number"),
    "fractions": (lambda value: 0 <= value <= 1, "is a fraction from 0 to 1"),
}
"""Class variable of an options class to the test of the options it names, in words."""
SERVED = (
    "transformers with compressed-tensors multiplies what it unpacks; vLLM has Marlin kernels for 4 and 8 bits in groups of -1,"
    " 32, 64 or 128. Plans note what is not served."
)
"""Who reads integer weights in groups (`MethodNotes.served`)."""
SERVED_W8A8 = (
    "transformers with compressed-tensors rounds in floating point; vLLM multiplies the integers, and so does quantkit on a CPU"
    " (`quantkit.backends.integer_kernels`)."
)
SETTING = "CPU seconds for SmolLM2-135M at 4 bits in groups of 64, one thread"
"""What the times in `MethodNotes.takes` were measured on (`benchmarks/quantize.py`)."""
BLOCKS = "Calibration text; memory for the model, the hidden states of its rows and the second moments of one block."
FACTS = ("weights_bits", "group_size", "symmetric", "activations_bits", "format")
"""Fields of a spec that an option of the same name decides."""


@dataclass(frozen=True)
class IntegerOptions:
    """The options with which every method on an integer grid begins."""

    weights_bits: Literal[2, 3, 4, 8] = 4
    """Bits of one weight."""
    group_size: int = 128
    """Input columns that share one scale; -1: one scale per output row."""
    symmetric: bool = True
    """Grid without zero points; false: each group has one, at a cost of as many bits as a weight."""

    at_least_one: ClassVar[tuple[str, ...]] = ()
    positive: ClassVar[tuple[str, ...]] = ()
    not_negative: ClassVar[tuple[str, ...]] = ()
    fractions: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_group_size(self.group_size)
        for kind, (fits, words) in RANGES.items():
            for name in getattr(self, kind):
                if not fits(value := getattr(self, name)):
                    raise UsageError(f"{name} is {value}; it {words}")
        if getattr(self, "activations_bits", None) is not None and not self.symmetric:
            raise UsageError(
                "activations_bits is 8 and symmetric false; transformers loads weights with zero points only by unpacking them,"
                " and then leaves activations unrounded. Use symmetric weights"
            )


def integer_method(
    name: str,
    summary: str,
    options: type[Any],
    *,
    requirements: tuple[str, ...] = (),
    paper: str = "",
    takes: str,
    served: str = SERVED,
    limits: str,
    **more: Any,
) -> MethodInfo:
    """Return the declaration of a method that stores integers as compressed-tensors, on bases and on trained models."""
    return MethodInfo(
        name=name,
        summary=summary,
        options=options,
        stages=frozenset({Stage.BASE, Stage.TRAINED}),
        requirements=(*requirements, "compressed-tensors>=0.19"),
        adapters=("LoRa", "DoRa", "VeRa"),
        notes=MethodNotes(paper=paper, takes=takes, served=served, limits=limits),
        **more,
    )


def check_group_size(value: int | None) -> None:
    """Refuse a group size that is neither a number of columns nor -1; None passes."""
    if value is not None and value != -1 and value < 1:
        raise UsageError(f"group_size is {value}; it must be a number of columns, or -1 for the whole row")


def integer_plan(
    method: str, options: Any, context: PlanContext, *, tags: Sequence[str] = (), notes: Sequence[str] = (), **facts: Any
) -> QuantizationPlan:
    """Return the plan of integer weights, the head dense, as these options say; `facts` are spec fields that overrule them.

    `asym` or `sym` tags a grid that is not the method's usual one, and a format other than compressed-tensors is a tag;
    `tags` come after them. `notes` come before those on who serves the weights.

    Raises:
        UsageError: the format cannot hold such weights, or none of its loaders reads them.
    """
    from quantkit.backends.vllm_rules import check_servable, check_servable_activations

    said = {name: getattr(options, name) for name in FACTS if hasattr(options, name)} | facts
    storage, bits, symmetric = said.pop("format", "compressed-tensors"), said["weights_bits"], said["symmetric"]
    usual = getattr(type(options), "symmetric", True) is not False
    named = [] if symmetric is usual else ["sym" if symmetric else "asym"]
    named += [] if storage == "compressed-tensors" else [storage]
    spec = QuantizationSpec(
        method=method,
        weights_dtype=f"int{bits}",
        format=storage,
        lm_head_dtype=context.head_dtype,
        tags=(*named, *tags),
        **said,
    )
    served = check_servable(spec, context.model_config) if spec.activations_bits is None else check_servable_activations(spec)
    return context.plan(spec, options, notes=(*notes, *served))
