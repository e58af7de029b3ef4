"""How many parameters does an adapter train, on which layers?

Targets are chosen by name exactly as training chooses them (`quantkit.adapters`).
"""

from dataclasses import dataclass

from quantkit.adapters import chosen_targets
from quantkit.errors import UsageError
from quantkit.forecasting.shape import LinearShape, ModelShape
from quantkit.plan import AdapterPlan


@dataclass(frozen=True, slots=True)
class AdapterSize:
    """Parameters of an adapter, and the layers that carry it."""

    layers: tuple[LinearShape, ...]
    trained: int
    """Parameters that are trained."""
    frozen: int
    """Parameters that stay as they are drawn: VeRA's shared projections."""
    names: frozenset[str]
    largest: int = 0
    """Parameters of the largest tensor that is trained."""


def adapter_size(shape: ModelShape, adapter: AdapterPlan) -> AdapterSize:
    """Return the size of an adapter on a model; with NoPeft, all of the model's parameters are trained.

    Raises:
        UsageError: an entry of the targets matches no layer.
    """
    if adapter.kind == "NoPeft":
        return AdapterSize((), shape.parameters, 0, frozenset(), max(shape.largest, shape.embeddings))
    by_name = {layer.name: layer for layer in (*shape.linears, *([shape.head] if shape.head else []))}
    names = chosen_targets(
        [layer.name for layer in shape.linears],
        shape.head.name if shape.head else "",
        adapter.target_modules,
        family=shape.family,
    )
    layers = tuple(by_name[name] for name in names)
    saved = sum(_module_parameters(shape, entry) for entry in adapter.modules_to_save)
    if adapter.kind == "VeRa":
        trained = sum(adapter.r + layer.outputs for layer in layers)
        widest, tallest = max(layer.inputs for layer in layers), max(layer.outputs for layer in layers)
        return AdapterSize(layers, trained + saved, adapter.r * (widest + tallest), frozenset(names))
    trained = sum(adapter.r * (layer.inputs + layer.outputs) for layer in layers)
    if adapter.kind == "DoRa":
        trained += sum(layer.outputs for layer in layers)
    largest = max((adapter.r * max(layer.inputs, layer.outputs) for layer in layers), default=0)
    return AdapterSize(layers, trained + saved, 0, frozenset(names), max(largest, saved))


def _module_parameters(shape: ModelShape, entry: str) -> int:
    """Return the parameters of the copies that `modules_to_save` trains in full."""
    layers = (*shape.linears, *([shape.head] if shape.head else []))
    found = sum(layer.weights for layer in layers if layer.name == entry or layer.name.endswith(f".{entry}"))
    if found:
        return found
    if "embed" in entry or entry == "wte":
        return shape.embeddings
    raise UsageError(f"modules_to_save: {entry!r} is no linear layer or embedding of {shape.name}; its size is not known here")
