"""What do the weights of a model in memory really hold?

`measure_model` reads a `QuantizationSpec` off the modules and tensors; `check_model` compares it with the spec that a plan
promised. Believing `config.json`, or the arguments that were passed to `from_pretrained`, is how a 4-bit request that was
silently ignored goes unnoticed.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from quantkit.errors import VerificationError
from quantkit.plan import QuantizationPlan
from quantkit.spec import DENSE_BITS, QuantizationSpec

if TYPE_CHECKING:
    from quantkit.backends import LayerFacts

MEASURED = (
    "weights_bits",
    "weights_dtype",
    "format",
    "group_size",
    "symmetric",
    "double_quant",
    "activations_bits",
    "lm_head_dtype",
)
"""Fields of a spec that are read off a model; method, tags, cache bits and extras are not in the weights."""
LEFT_OUT_KEYS = ("ignore", "modules_to_not_convert", "llm_int8_skip_modules")
"""Keys under which storage formats list, by full name, the layers that stay dense."""
SHOWN = 3
"""How many odd layers an error names."""


def measure_model(model: Any, *, method: str) -> QuantizationSpec:
    """Return what the model's linear layers hold, under the name of `method`; adapters are looked through.

    Dense layers that the model's own configuration lists as left out of quantization are not counted.

    Raises:
        VerificationError: layers differ from each other (the odd ones are named), cannot be measured, or there are none.
    """
    from quantkit.backends import dtype_name, layer_facts
    from quantkit.layers import linear_layers, output_head

    layers = linear_layers(model)
    if not layers:
        raise VerificationError(f"{type(model).__name__} has no linear layers; there is nothing to measure")
    facts = {}
    for name, module in layers.items():
        try:
            facts[name] = layer_facts(module)
        except VerificationError as error:
            raise VerificationError(f"{name}: {error}") from None
    facts = _without_left_out(model, facts)
    (usual, count), *others = Counter(facts.values()).most_common()
    if others:
        odd = [f"{name} ({fact})" for name, fact in facts.items() if fact != usual]
        more = f" and {len(odd) - SHOWN} more" if len(odd) > SHOWN else ""
        raise VerificationError(
            f"the model's linear layers are not alike: {count} of {len(facts)} are {usual}, but not"
            f" {', '.join(odd[:SHOWN])}{more}"
        )
    head = output_head(model)[1]
    if head is None:
        raise VerificationError(f"{type(model).__name__} has no output head; only causal language models are measured")
    return QuantizationSpec(method=method, lm_head_dtype=dtype_name(head.weight.dtype), **asdict(usual))


def _without_left_out(model: Any, facts: "dict[str, LayerFacts]") -> "dict[str, LayerFacts]":
    """Leave out dense layers that `quantization_config` names as such, unless all layers are dense."""
    from quantkit.layers import bare_model

    stated: Any = getattr(getattr(bare_model(model), "config", None), "quantization_config", None)
    stated = stated.to_dict() if hasattr(stated, "to_dict") else stated
    names = {name for key in LEFT_OUT_KEYS for name in (stated.get(key) or ())} if isinstance(stated, Mapping) else set()
    kept = {name: fact for name, fact in facts.items() if fact.format != "dense" or name not in names}
    return kept or facts


def loaded_spec(plan: QuantizationPlan) -> QuantizationSpec:
    """Return what the plan's base measures as in memory: as its spec says, with all that is dense in the compute data type."""
    changes: dict[str, Any] = {"lm_head_dtype": plan.compute_dtype}
    if not plan.spec.is_quantized:
        changes |= {"weights_dtype": plan.compute_dtype, "weights_bits": DENSE_BITS[plan.compute_dtype]}
    return plan.spec.with_changes(**changes)


def check_model(model: Any, spec: QuantizationSpec) -> None:
    """Compare a model with the spec it should have.

    Raises:
        VerificationError: names every field that differs, with both values.
    """
    measured = measure_model(model, method=spec.method)
    faults = [
        f"{name} is {getattr(measured, name)!r}, not {getattr(spec, name)!r}"
        for name in MEASURED
        if getattr(measured, name) != getattr(spec, name)
    ]
    if faults:
        raise VerificationError(f"the model in memory is not what its {spec.method} spec says: {'; '.join(faults)}")
