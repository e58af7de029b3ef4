"""What does the end of a run take that folds its adapters in?

Tensor by tensor from the last checkpoint, and judged a decoder block at a time (`quantkit_tools.merging.in_run`): a few copies
of the largest tensor, and the logits that are compared. What the files do not tell is folded in in memory, a float32 copy of
the whole model. Counting that for every run, as if merging were `merge_and_unload`, would refuse runs that end well.
"""

from collections.abc import Mapping

from quantkit.fidelity import PROBE_TOKENS
from quantkit.forecasting.settings import RunSettings
from quantkit.forecasting.shape import ModelShape
from quantkit.merging.report import BATCH_ROWS, OBSERVED_AT_ONCE
from quantkit.spec import DENSE_BITS

COMPARED = 11
"""Tensors of logits that a comparison in memory takes. Those of base, adapter and folded model and six in the divergence are
nine; as measured on four models (`benchmarks/forecast.py`) it is 12.1 to 14.2 with what the heap holds beyond (`cpu_slack`)."""


def end_of_run(shape: ModelShape, settings: RunSettings, trained: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Return moment → items; `trained` are the weights as they lie in memory when training is over."""
    if not settings.merges:
        return {}
    if settings.folds_in_memory:
        folding = max(merging(shape), comparing(shape, settings), key=lambda items: sum(items.values()))
        return {"merge": folding, "save": saving(shape, settings)}
    seen = _logits(shape, settings)
    return {
        "observe": {**trained, **seen},
        "merge": {"the tensor being made": streaming_bytes(shape), **_logits(shape, settings, held=1)},
        "compare": {
            "embeddings, head, norms in float32": 4 * shape.dense_parameters,
            "the same, as stored": DENSE_BITS[settings.save_dtype] // 8 * shape.dense_parameters,
            "the tensor being read": DENSE_BITS[settings.save_dtype] // 8 * max(shape.embeddings, shape.largest),
            "a block in float32": 4 * sum(layer.weights for layer in shape.block_of(0)),
            **seen,
        },
    }


def merging(shape: ModelShape) -> dict[str, int]:
    """Return what folding in takes in memory: a float32 model, and the copies of the tensor that is being made."""
    layer = max((layer.weights for layer in shape.linears), default=0)
    return {
        "the folded model in float32": 4 * shape.parameters,
        "the tensor being made": max(3 * 4 * layer, 2 * shape.embeddings),
    }


def comparing(shape: ModelShape, settings: RunSettings) -> dict[str, int]:
    """Return what comparing the folded model with the trained one takes: logits of `PROBE_TOKENS`, always on the CPU."""
    folded = {"the folded model in float32": 4 * shape.parameters}
    compared = COMPARED * PROBE_TOKENS * shape.vocabulary * 4
    return folded | ({"logits that are compared": compared} if settings.device == "cpu" else {})


def streaming_bytes(shape: ModelShape) -> int:
    """Return what folding tensor by tensor holds at most: the float32 copies of one layer, or one tensor and its cast."""
    layer = max((layer.weights for layer in shape.linears), default=0)
    return max(3 * 4 * layer, 2 * 2 * max(shape.embeddings, shape.largest))


def saving(shape: ModelShape, settings: RunSettings) -> dict[str, int]:
    """Return what saving takes: the model in its storage type, the saved one loaded again in float32, and logits of it."""
    wide = DENSE_BITS[settings.save_dtype] // 8
    models = {"the model to be saved": wide * shape.parameters, "the same, loaded again to compare": 4 * shape.parameters}
    return models | _logits(shape, settings)


def _logits(shape: ModelShape, settings: RunSettings, *, held: int | None = None) -> dict[str, int]:
    """Return float32 logits: those of adapter and merged models, kept on the CPU, and what a pass of the judged rows makes."""
    passing = 3 * min(OBSERVED_AT_ONCE, BATCH_ROWS * settings.length)  # logits, and two copies that logarithms are made of
    kept, passing = (2, passing) if held is None else (held, 0)
    positions = passing + (kept * PROBE_TOKENS if settings.device == "cpu" else 0)
    return {"logits that are compared": 4 * positions * shape.vocabulary} if positions else {}
