"""What does each of several GPUs hold?

With copies (DDP) as much as one alone, and the buckets in which gradients are averaged. With FSDP2, as quantkit splits
(`quantkit.training.sharding`), a part of the frozen weights and one block's whole ones while it computes; adapters stay whole.
Where all weights are trained, a part of them, of gradients and of optimizer states, and one block's whole ones. With
`device_map` some of the blocks, the first GPU with the embeddings, the last with head and loss. Dividing by the number of GPUs,
the usual rule, forgets what every one of them needs.
"""

from collections.abc import Mapping
from typing import Any

from quantkit.forecasting.settings import RunSettings
from quantkit.forecasting.shape import ModelShape

GATHERED = 2
"""Blocks whose weights are whole at once: the one that computes, and the next, fetched ahead."""
EMBEDDINGS = "embeddings, head, norms"
HEAD_GRADIENT = "the head's gradient"
AT_THE_END = ("logits and loss", "logits of a trial", HEAD_GRADIENT)
AT_WORK = {"logits and loss", "gradients of activations"}
"""Items of the moments in which blocks compute."""
EVERYWHERE = ("matrix products' workspace", "dequantized weight")
"""Items that each GPU has in full, whatever its share of the blocks."""
OF_TRAINED = ("gradients", "optimizer states", "optimizer's working memory")
"""Items that are split with the weights where all of these are trained."""


def shares(shape: ModelShape, settings: RunSettings) -> list[int]:
    """Return how many blocks each GPU has under `device_map`: as even as can be, the first ones more.

    >>> from types import SimpleNamespace as Some
    >>> shares(Some(blocks=32), Some(processes=3))
    [11, 11, 10]
    """
    each, over = divmod(shape.blocks, settings.processes)
    return [each + (number < over) for number in range(settings.processes)]


def of_each_device(
    items: Mapping[str, int], shape: ModelShape, settings: RunSettings, weights: Mapping[str, int]
) -> list[dict[str, int]]:
    """Return each GPU's items of a moment of training; `weights` are those of the base, as one device would hold them."""
    if settings.strategy == "ddp":
        return [_copied(items)] * settings.processes
    if settings.strategy == "fsdp":
        split = _all_split if settings.adapter.kind == "NoPeft" else _split
        return [split(items, shape, settings, weights)] * settings.processes
    if settings.strategy == "device_map":
        return [_mapped(items, shape, settings, number) for number in range(settings.processes)]
    return [dict(items)]


def _copied(items: Mapping[str, int]) -> dict[str, int]:
    gradients = items.get("gradients", 0)
    return {**items, **({"buckets of gradients": gradients} if gradients else {})}


def _split(items: Mapping[str, int], shape: ModelShape, settings: RunSettings, weights: Mapping[str, int]) -> dict[str, int]:
    found = _copied(items)
    for name in weights:
        found[name] = -(-weights[name] // settings.processes)
    blocks = sum(size for name, size in weights.items() if name != EMBEDDINGS)
    computing = min(GATHERED * -(-blocks // shape.blocks), blocks) if AT_WORK & set(items) else 0
    found["weights gathered"] = computing + weights.get(EMBEDDINGS, 0)
    return found


def _all_split(
    items: Mapping[str, int], shape: ModelShape, settings: RunSettings, weights: Mapping[str, int]
) -> dict[str, int]:
    found = {
        name: -(-size // settings.processes) if name in weights or name in OF_TRAINED else size for name, size in items.items()
    }
    if AT_WORK & set(items):
        block, rest = -(-shape.linear_weights // shape.blocks), shape.dense_parameters
        found["weights gathered"] = GATHERED * block * settings.computes_in_bytes + rest * settings.trained_bytes
        if "gradients of activations" in items:  # those of the block that was computed are sent in the data type they add up in
            found["gradients of gathered weights"] = block * (settings.computes_in_bytes + settings.trained_bytes)
            found["gradients of gathered weights"] += max(rest * settings.trained_bytes, found.pop(HEAD_GRADIENT, 0))
    return found


def _mapped(items: Mapping[str, int], shape: ModelShape, settings: RunSettings, number: int) -> dict[str, int]:
    blocks, last = shares(shape, settings)[number], settings.processes - 1
    found: dict[str, int] = {}
    for name, size in items.items():
        if name in EVERYWHERE:
            found[name] = size
        elif name in AT_THE_END:
            found[name] = size if number == last else 0
        elif name == EMBEDDINGS:
            head = 0 if shape.tied else size // 2
            found[name] = (size - head if number == 0 else 0) + (head if number == last else 0)
        else:
            found[name] = -(-size * blocks // shape.blocks)
    return found


def described(devices: list[dict[str, int]]) -> tuple[Mapping[str, Any], ...]:
    """Return number, items and bytes of each GPU's peak as plain JSON data."""
    return tuple({"device": number, "items": items, "size_bytes": sum(items.values())} for number, items in enumerate(devices))
