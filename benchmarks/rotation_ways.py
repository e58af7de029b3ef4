"""What does rounding cost with and without a rotation? The measuring itself; `rotation.py` chooses models and prints.

A weight grid is computed once and judged under three kinds of activations: whole ones, and ones rounded per token to 8 and
4 bits as compressed-tensors rounds them. The 8-bit kind is what a checkpoint with `activations_bits` computes; 4-bit ones
exist in memory only, since no format carries them.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from goals import interval

SEED = 42
KL_EVERY = 4
"""One position in so many is compared as a whole distribution where the vocabulary is large."""
LARGE_VOCABULARY = 8192
WEIGHTS_ONLY: dict[str, tuple[str, dict[str, Any]]] = {
    "RTN": ("RTN", {}),
    "QuaRot + RTN": ("QuaRot", {"rounding": "rtn", "scale_search": "minmax"}),
    "GPTQ": ("GPTQ", {}),
    "QuaRot + GPTQ": ("QuaRot", {"rounding": "gptq"}),
    "GPTQ, desc_act": ("GPTQ", {"desc_act": True}),
}
ROWS_OF_8_BITS: dict[str, tuple[str, dict[str, Any]]] = {
    "RTN": ("RTN", {"weights_bits": 8, "group_size": -1}),
    "SmoothQuant": ("SmoothQuant", {}),
    "QuaRot + RTN": ("QuaRot", {"weights_bits": 8, "group_size": -1, "rounding": "rtn", "scale_search": "minmax"}),
}
PAIRS = (("QuaRot + RTN", "RTN"), ("QuaRot + GPTQ", "GPTQ"), ("GPTQ, desc_act", "GPTQ"), ("QuaRot + RTN", "SmoothQuant"))
"""What is compared with what: the first is better where its divergence is smaller."""


@dataclass(frozen=True)
class Setting:
    """How much is measured, and how finely weights are rounded."""

    bits: tuple[int, ...] = (4, 3)
    group_size: int = 64
    calib_rows: int = 32
    calib_length: int = 256
    held_out_tokens: int = 4096


@dataclass(frozen=True)
class Subject:
    """One model to be judged: how to get a fresh copy, and the rows that belong to its tokenizer."""

    name: str
    load: Callable[[], Any]
    calibration: Any
    rows: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class RowScore:
    """What a model does on one row."""

    nll: float
    tokens: int
    kl: float
    """Sum over `positions`, in nats."""
    positions: int
    said: Any
    """Log-probabilities `[positions, vocabulary]` of the dense model; None: of another."""


def compare(subject: Subject, setting: Setting) -> dict[str, Any]:
    """Round one model in every way, and return each way's scores and what rotating changed, with 95 % intervals."""
    from quantkit.console import say

    say(f"{subject.name} ...")
    change, peaks = largest_change(subject)
    dense = scores(subject.load(), subject.rows)
    ways: list[dict[str, Any]] = []
    for bits in setting.bits:
        for name, (method, options) in WEIGHTS_ONLY.items():
            wanted = {"weights_bits": bits, "group_size": setting.group_size} | options
            model, seconds = quantized(subject, method, wanted)
            for activations in (None, 8, 4):
                way = {"name": name, "bits": f"W{bits}A{activations or 16}", "quantize_s": seconds}
                ways.append(way | {"scores": judged(model, subject, dense, activations)})
    for name, (method, options) in ROWS_OF_8_BITS.items():
        model, seconds = quantized(subject, method, options)
        way = {"name": name, "bits": "W8A8 by row", "quantize_s": seconds}
        ways.append(way | {"scores": judged(model, subject, dense, 8)})
    found = {
        "largest_change_by_rotation": change,
        "peak_of_inputs": peaks,
        "perplexity": summary(dense, kl=False)["perplexity"],
        "rows": len(subject.rows),
        "effects": effects(ways),
        "ways": ways,
    }
    for way in ways:
        way.update(summary(way.pop("scores")))
    return found


def quantized(subject: Subject, method: str, options: dict[str, Any]) -> tuple[Any, float]:
    """Return a model on its grid, unpacked, and the seconds that took."""
    from quantkit import AdapterPlan, PlanContext, Stage
    from quantkit.backends.unpacked import unpack_model
    from quantkit.calibration import QuantizationWork
    from quantkit.methods import installed_methods

    methods, model = installed_methods(), subject.load()
    context = PlanContext(stage=Stage.TRAINED, adapter=AdapterPlan(kind="NoPeft"), model_config=model.config.to_dict())
    plan = methods.plan(method, options, context)
    started = time.perf_counter()
    model = methods.quantize_model(plan, model, subject.calibration, QuantizationWork())
    return unpack_model(model), time.perf_counter() - started


def largest_change(subject: Subject) -> tuple[dict[str, float], dict[str, float]]:
    """Return max |Δlogit| of rotating without rounding to a grid, and how peaked the layers' inputs were and are.

    `float32`: weights and arithmetic. `float32_weights`: the same weights, both models computed in float64, so that only
    what rotating did to the weights counts. `arithmetic`: how far float32 itself is from float64 on the model as it was.
    """
    import torch

    from quantkit.fidelity import compare_logits, probe_logits
    from quantkit.numerics.hadamard import rotation
    from quantkit_plugins.quarot.solver import rotate_model

    with torch.no_grad():
        model = subject.load().float()
        config = model.config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        peaks = {"before": peak_of_inputs(model, subject.rows[0])}
        single, double = probe_logits(model, subject.rows), probe_logits(model.double(), subject.rows)
        model.float()
        rotate_model(model, rotation(config.hidden_size, seed=0), rotation(head, seed=1))
        peaks["after"] = peak_of_inputs(model, subject.rows[0])
        turned = probe_logits(model, subject.rows)
        pairs = {
            "float32": (single, turned),
            "float32_weights": (double, probe_logits(model.double(), subject.rows)),
            "arithmetic": (double, single),
        }
        return {name: compare_logits(*pair).max_abs_logit_difference for name, pair in pairs.items()}, peaks


def peak_of_inputs(model: Any, row: Sequence[int]) -> float:
    """Return max |x| / root mean square x of what enters a linear layer, averaged over tokens and the layers of all blocks."""
    import torch

    from quantkit.layers import linear_layers

    seen: list[float] = []

    def see(_: Any, inputs: Any) -> None:
        tokens = inputs[0].float()
        seen.append(float((tokens.abs().amax(-1) / tokens.square().mean(-1).sqrt().clamp(min=1e-12)).mean()))

    head = model.get_output_embeddings()
    handles = [item.register_forward_pre_hook(see) for item in linear_layers(model).values() if item is not head]
    model(input_ids=torch.tensor([list(row)]), use_cache=False)
    for handle in handles:
        handle.remove()
    return sum(seen) / len(seen)


def judged(model: Any, subject: Subject, dense: list[RowScore], activations: int | None) -> list[RowScore]:
    """Return a quantized model's scores with its layers' inputs rounded to so many bits per token; None: not at all."""
    from quantkit.backends.compressed_tensors import round_tokens
    from quantkit.backends.unpacked import UnpackedLinear

    handles = []
    for layer in model.modules():
        # layers of a W8A8 artifact round their inputs themselves
        if activations is not None and isinstance(layer, UnpackedLinear) and layer.facts.activations_bits is None:
            handles.append(layer.register_forward_pre_hook(lambda _, inputs: (round_tokens(inputs[0], activations),)))
    found = scores(model, subject.rows, dense)
    for handle in handles:
        handle.remove()
    return found


def scores(model: Any, rows: Sequence[Sequence[int]], dense: list[RowScore] | None = None) -> list[RowScore]:
    """Return each row's summed loss and, given the dense model's scores, its summed divergence from that."""
    import torch

    found = []
    every = KL_EVERY if model.config.vocab_size > LARGE_VOCABULARY else 1
    with torch.inference_mode():
        for index, row in enumerate(rows):
            ids = torch.tensor([list(row)])
            said = model(input_ids=ids[:, :-1], use_cache=False).logits[0].float().log_softmax(-1)
            nll = -float(said.gather(-1, ids[0, 1:, None]).double().sum())
            kept = said[::every]
            if dense is None:
                found.append(RowScore(nll, len(said), 0.0, len(kept), kept))
                continue
            wanted = dense[index].said
            kl = float((wanted.exp() * (wanted - kept)).sum(-1).double().sum())
            found.append(RowScore(nll, len(said), kl, len(kept), None))
    return found


def summary(found: Sequence[RowScore], *, kl: bool = True) -> dict[str, Any]:
    """Return perplexity and mean divergence with 95 % intervals over rows."""
    loss = interval([(row.nll, row.tokens) for row in found], _mean, seed=SEED)
    result = {"perplexity": {key: math.exp(value) for key, value in loss.items()}}
    if kl:
        result["mean_kl"] = interval([(row.kl, row.positions) for row in found], _mean, seed=SEED)
    return result


def effects(ways: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return how many times the divergence of the second of each pair the first has, on the same rows."""
    found = []
    for way in ways:
        for first, second in PAIRS:
            other = [item for item in ways if (item["name"], item["bits"]) == (second, way["bits"])]
            if way["name"] == first and other:
                pairs = [(one.kl, two.kl) for one, two in zip(way["scores"], other[0]["scores"], strict=True)]
                ratio = interval(pairs, _mean, seed=SEED)
                verdict = "better" if ratio["high"] < 1 else "worse" if ratio["low"] > 1 else "no difference shown"
                found.append({"way": first, "against": second, "bits": way["bits"], "verdict": verdict} | ratio)
    return found


def _mean(rows: Sequence[tuple[float, float]]) -> float:
    return sum(total for total, _ in rows) / sum(count for _, count in rows)
