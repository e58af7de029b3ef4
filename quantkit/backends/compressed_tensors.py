"""What do the layers of a compressed-tensors checkpoint hold, once it is loaded?

The scheme that the library attaches to each module says so; the checkpoint's `config.json` only says what was intended.
"""

from typing import Any

from quantkit.backends import LayerFacts
from quantkit.errors import VerificationError


def layer_facts(module: Any) -> LayerFacts:
    """Return what a layer with a `quantization_scheme` holds.

    Raises:
        VerificationError: the scheme quantizes no weights, or by a strategy that `QuantizationSpec` has no word for.
    """
    scheme = module.quantization_scheme
    weights = scheme.weights
    if weights is None:
        raise VerificationError("a compressed-tensors layer has a scheme without weights; it cannot be measured")
    strategy = getattr(weights.strategy, "value", weights.strategy)
    group_sizes = {"group": weights.group_size, "tensor_group": weights.group_size, "channel": -1, "tensor": None}
    if strategy not in group_sizes:
        raise VerificationError(f"compressed-tensors strategy {strategy!r} cannot be measured yet")
    kind = getattr(weights.type, "value", weights.type)
    floats = {8: "float8_e4m3fn", 4: "fp4"}
    dtype = f"int{weights.num_bits}" if kind == "int" else floats.get(weights.num_bits, f"float{weights.num_bits}")
    inputs = scheme.input_activations
    return LayerFacts(
        weights_bits=weights.num_bits,
        weights_dtype=dtype,
        format="compressed-tensors",
        group_size=group_sizes[strategy],
        symmetric=bool(weights.symmetric),
        activations_bits=None if inputs is None else inputs.num_bits,
    )
