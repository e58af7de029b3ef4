"""How fast does a model answer one person, and how many bits does it take to hold?

Speed is measured on prompts of the task, one at a time, after one that is not counted: the prompt's tokens over the time to
the first token, the others over the rest. Tokens per second of a batch, the usual number, say what a server could sell, not
how long anyone waits. Bits per weight are counted, with scales, zero points and whatever stayed dense, never taken from a name.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.console import progress
from quantkit.errors import UsageError
from quantkit.evaluation.generation import timed_answer
from quantkit.files import MANIFEST, read_manifest
from quantkit.headers.stored import DENSE_DTYPES
from quantkit.headers.tensorfiles import StoredTensor, read_tensor_index
from quantkit.layers import features, is_linear, linear_layers

if TYPE_CHECKING:
    from quantkit.modeling import ModelSource

PERCENTILES = (("p50", 0.5, 1), ("p90", 0.9, 10), ("p99", 0.99, 100))
"""Name, share, and how many prompts it takes: below that, a percentile would be the slowest one under another name."""
ONE_PROMPT_IN = 25
FEWEST, MOST = 2, 8
WARM_UP_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What one prompt at a time takes; the fields are those of `quantkit.evaluation.results.Cost`."""

    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    """None where no answer had a second token."""
    latency_s: dict[str, float] = field(default_factory=dict)
    latency_n: int = 0


def latency_prompts(wanted: int | None, rows: int) -> int:
    """Return how many of a task's prompts to time: as many as wanted, else one in 25, at least 2 and at most 8.

    One prompt at a time takes several times as long as in a batch: so few cost little beside the evaluation.

    Raises:
        UsageError: the number is negative.

    >>> [latency_prompts(None, rows) for rows in (1, 20, 100, 1000)]
    [1, 2, 4, 8]
    """
    if wanted is not None and wanted < 0:
        raise UsageError(f"latency_prompts is {wanted}; it must be at least 0, which measures no latency")
    return min(rows, max(FEWEST, min(MOST, rows // ONE_PROMPT_IN)) if wanted is None else wanted)


def measure_speed(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    count: int,
    max_new_tokens: int,
    title: str = "one prompt at a time",
) -> Speed:
    """Time `count` of the prompts, evenly spread, one at a time and after a warm-up; 0 measures nothing."""
    if count < 1 or not prompts:
        return Speed()
    chosen = [prompts[index * len(prompts) // count] for index in range(min(count, len(prompts)))]
    timed_answer(model, tokenizer, chosen[-1], max_new_tokens=min(WARM_UP_TOKENS, max_new_tokens))
    prompt_tokens = later_tokens = 0
    first_s, whole_s = [], []
    with progress(title, len(chosen), unit="prompts") as bar:
        for prompt in chosen:
            answer, first, whole = timed_answer(model, tokenizer, prompt, max_new_tokens=max_new_tokens)
            prompt_tokens += len(prompt)
            later_tokens += len(answer.tokens) - 1
            first_s.append(first)
            whole_s.append(whole)
            bar.advance()
    return Speed(
        prefill_tokens_per_s=round(prompt_tokens / sum(first_s), 1),
        decode_tokens_per_s=round(later_tokens / (sum(whole_s) - sum(first_s)), 2) if later_tokens else None,
        latency_s=percentiles(whole_s),
        latency_n=len(chosen),
    )


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return those of p50, p90 and p99 that this many measurements can tell: from 1, 10 and 100 on.

    Each is a value that was measured, the smallest that at least this share of all does not exceed.

    >>> percentiles([0.3, 0.1, 0.2])
    {'p50': 0.2}
    >>> percentiles([float(value) for value in range(1, 101)])
    {'p50': 50.0, 'p90': 90.0, 'p99': 99.0}
    """
    ordered = sorted(seconds)
    return {
        name: round(ordered[math.ceil(share * len(ordered)) - 1], 4)
        for name, share, needed in PERCENTILES
        if len(ordered) >= needed
    }


def size_on_disk(path: str | Path) -> int:
    """Return the bytes of an artifact's own files: those of its manifest, without one all but hidden files, or one file's."""
    path = Path(path)
    if path.is_file():
        return path.stat().st_size
    if (files := read_manifest(path)) is not None:
        return sum(int(entry["size"]) for entry in files.values())
    inside = (item for item in path.rglob("*") if item.is_file() and item.name != MANIFEST)
    return sum(item.stat().st_size for item in inside if not any(part.startswith(".") for part in item.relative_to(path).parts))


def bits_per_weight(model: Any, source: "ModelSource") -> float | None:
    """Return the bits that hold a loaded model's weights, by the number of weights; an adapter's are counted with its base's.

    Bits are read off the files, so that a model weighs the same whatever it computes in. Only layers that were quantized while
    loading, which no file knows, are counted in memory, as they would be saved. None where the weights stand in no file whose
    tensors can be listed.
    """
    base = _tensors(Path(source.base if source.kind == "adapter" else source.path), "model")  # type: ignore[arg-type]
    adapter = _tensors(Path(source.path), "adapter_model") if source.kind == "adapter" else []
    if base is None or adapter is None:
        return None
    stored, elements = (8 * sum(item.size_bytes for item in base), sum(item.elements for item in base))
    if all(item.dtype in DENSE_DTYPES for item in base) and (quantized := _quantized_layers(model)):
        inside = sum(math.prod(features(module)) for module in quantized)
        bits = stored * (1 - inside / elements) + 8 * sum(map(_saved_bytes, quantized))
        weights = elements + sum(item.elements for item in adapter)
    else:
        bits, weights = stored, count_weights(model)
    return round((bits + 8 * sum(item.size_bytes for item in adapter)) / weights, 4)


def count_weights(model: Any) -> int:
    """Return the number of weights of a model, those of adapters included and shared ones once; packed codes count as weights.

    >>> from torch import nn
    >>> count_weights(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)))
    21
    """
    seen: dict[int, int] = {}
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if is_linear(module) and not hasattr(module, "base_layer"):
            weight = own.pop("weight", None)
            inputs, outputs = features(module)
            seen[id(module if weight is None else weight)] = inputs * outputs
            own = {name: parameter for name, parameter in own.items() if name == "bias"}
        for parameter in own.values():
            seen.setdefault(id(parameter), parameter.numel())
    return sum(seen.values())


def _quantized_layers(model: Any) -> list[Any]:
    from quantkit.backends import layer_facts

    return [module for module in linear_layers(model).values() if layer_facts(module).format != "dense"]


def _saved_bytes(module: Any) -> int:
    """Return the bytes of a quantized layer's codes, scales and tables."""
    return sum(item.nbytes for name, item in module.state_dict().items() if name != "bias" and hasattr(item, "nbytes"))


def _tensors(path: Path, stem: str) -> list[StoredTensor] | None:
    """Return the tensors of a folder's safetensors files; None where they cannot be listed."""
    try:
        return list(read_tensor_index(path, stem=stem).tensors.values())
    except UsageError:
        return None
