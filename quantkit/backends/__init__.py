"""What does a model hold in the layers of this or that quantization library?

One module per library answers three questions about its layers, so that loading, measuring and merging need not know the
libraries: what a layer's weights are (`layer_facts`), what they are as float32 (`dense_layer`), and what must be switched
off before the first forward pass (`keep_layout`).
"""

from typing import Any

from quantkit.backends.facts import LayerFacts, dtype_name, is_torchao
from quantkit.errors import VerificationError
from quantkit.spec import DENSE_BITS

__all__ = ["LayerFacts", "dense_layer", "dtype_name", "is_torchao", "keep_layout", "layer_facts"]


def layer_facts(module: Any) -> LayerFacts:
    """Return what a linear layer's weights are, read off the module.

    Raises:
        VerificationError: the kind of layer is not known, so nothing true can be said about it.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if _is_bitsandbytes(module):
        from quantkit.backends import bitsandbytes

        return bitsandbytes.layer_facts(module)
    if is_torchao(module):
        from quantkit.backends import torchao

        return torchao.layer_facts(module)
    if _states_facts(module):
        facts: LayerFacts = module.measured() if hasattr(module, "measured") else module.facts
        return facts
    if getattr(module, "quantization_scheme", None) is not None:
        from quantkit.backends import compressed_tensors

        return compressed_tensors.layer_facts(module)
    if type(module) in (nn.Linear, Conv1D) or (isinstance(module, nn.Linear) and type(module).__module__.startswith("torch.")):
        dtype = dtype_name(module.weight.dtype)
        if dtype in DENSE_BITS and type(module.weight) in (nn.Parameter, nn.UninitializedParameter):
            return LayerFacts(weights_bits=DENSE_BITS[dtype], weights_dtype=dtype)
        raise VerificationError(
            f"a {type(module).__name__} holds {type(module.weight).__name__} of {dtype}; it cannot be measured"
        )
    raise VerificationError(f"layers of type {type(module).__module__}.{type(module).__name__} cannot be measured yet")


def dense_layer(module: Any) -> Any:
    """Return a float32 `nn.Linear` (an unquantized `Conv1D` stays one) with the weights the layer computes with.

    Raises:
        VerificationError: the kind of layer is not known, or its weights are no longer what was loaded.
    """
    from torch import float32

    if _is_bitsandbytes(module):
        from quantkit.backends import bitsandbytes

        return bitsandbytes.dense_layer(module)
    if is_torchao(module):
        from quantkit.backends import torchao

        return torchao.dense_layer(module)
    if _states_facts(module):
        from quantkit.backends import compressed_tensors

        return compressed_tensors.dense_layer(module)
    facts = layer_facts(module)
    if facts.format != "dense":
        raise VerificationError(f"weights in {facts} cannot be dequantized yet")
    return module.to(float32)


def keep_layout(model: Any) -> None:
    """Switch off whatever would rewrite quantized weights during a forward pass; called after every load.

    Raises:
        VerificationError: the weights have been rewritten already.
    """
    for module in model.modules():
        if _is_bitsandbytes(module):
            from quantkit.backends import bitsandbytes

            bitsandbytes.keep_layout(model)
            return


def _is_bitsandbytes(module: Any) -> bool:
    return type(module).__module__.startswith("bitsandbytes.") and hasattr(module, "in_features")


def _states_facts(module: Any) -> bool:
    return isinstance(getattr(module, "facts", None), LayerFacts)
