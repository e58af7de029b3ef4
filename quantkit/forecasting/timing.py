"""How long will a run take? Its arithmetic, counted, by a rate that was measured.

The rate is what an earlier run reached on this machine, tokens per second that the user names, or the speed of one matrix
product here times the share of it that quantkit's step is known to reach. A table of processors would be wrong about most.
"""

import time
from dataclasses import dataclass
from typing import Any

from quantkit.forecasting.activations import recomputed_blocks, stays_quantized
from quantkit.forecasting.adapters import AdapterSize, adapter_size
from quantkit.forecasting.settings import RunSettings
from quantkit.forecasting.shape import ModelShape

SHARE_OF_PRODUCTS = {"bfloat16": 0.35, "float32": 0.94}
"""Share of the speed of its matrix products that a training step reaches (benchmarks/README.md: SmolLM2-135M, one CPU core)."""
PRODUCT = (512, 2048, 2048)
"""Rows, inputs and outputs of the matrix product that is timed."""
REPEATS = 5


@dataclass(frozen=True, slots=True)
class Rate:
    """Floating-point operations per second, and where the number comes from."""

    flops_per_s: float
    source: str


@dataclass(frozen=True, slots=True)
class Timing:
    """The time of a run."""

    flops_per_token: float
    tokens_per_step: float
    """Tokens of a step, over all processes."""
    rate: Rate | None
    steps: int | None

    @property
    def tokens_per_s(self) -> float | None:
        """Return the tokens per second of one process."""
        return None if self.rate is None else self.rate.flops_per_s / self.flops_per_token

    def seconds_of(self, processes: int) -> tuple[float | None, float | None]:
        """Return the seconds of a step and of the run; None where the rate, or the number of steps, is not known."""
        if self.tokens_per_s is None:
            return None, None
        step = self.tokens_per_step / processes / self.tokens_per_s
        return step, None if self.steps is None else step * self.steps

    def to_dict(self, processes: int) -> dict[str, Any]:
        """Return plain JSON data."""
        step, run = self.seconds_of(processes)
        return {
            "flops_per_token": self.flops_per_token,
            "tokens_per_step": self.tokens_per_step,
            "tokens_per_s": self.tokens_per_s,
            "rate_source": None if self.rate is None else self.rate.source,
            "step_s": step,
            "steps": self.steps,
            "run_s": run,
        }


def flops_per_token(shape: ModelShape, settings: RunSettings) -> float:
    """Return the floating-point operations that training one token takes, forward and backward.

    Two per weight forward, two for the gradient of the input, two more where the weight is trained; attention by the length of
    an average row; the head at the positions that are learnt.
    """
    size, whole = adapter_size(shape, settings.adapter), settings.adapter.kind == "NoPeft"
    length = settings.mean_length or settings.length
    routed = shape.experts_per_token * shape.blocks * 3 * shape.width * shape.intermediate if shape.experts else 0
    base, adapter = shape.linear_weights + routed, 0 if whole else sum(_inner(layer, settings) for layer in size.layers)
    again = recomputed_blocks(shape, settings)
    whole_again, mlps_again = again.full / shape.blocks, again.selective / shape.blocks
    mlp = [layer for layer in shape.linears if shape.intermediate in (layer.inputs, layer.outputs, layer.outputs // 2)]
    inner = sum(layer.weights for layer in mlp) + routed
    spared = (whole_again + mlps_again) * sum(layer.weights for layer in mlp if _spared(layer, shape, settings, size))
    repeated = whole_again * base + mlps_again * inner - spared
    attention = 4 * shape.blocks * shape.heads * shape.head_dim * length / 2  # q·k and weights·v, half of them hidden
    learnt = settings.learnt_tokens / settings.batch_tokens
    if settings.logits != "tiles":
        learnt = 1.0
    head = 0 if shape.head is None else shape.head.weights * learnt
    products = base * (6 if whole else 4) + 2 * repeated + head * (6 if whole else 4)
    return products + 6 * adapter + attention * (3 + whole_again)


def timing(shape: ModelShape, settings: RunSettings, rate: Rate | None) -> Timing:
    """Return the time of a run at a rate."""
    tokens = settings.rows * (settings.mean_length or settings.length) * settings.accumulation
    processes = settings.processes if settings.strategy in ("ddp", "fsdp") else 1
    return Timing(flops_per_token(shape, settings), tokens * processes, rate, settings.steps)


def rate_of_tokens(tokens_per_s: float, shape: ModelShape, settings: RunSettings) -> Rate:
    """Return the rate that so many tokens per second of this run mean."""
    return Rate(tokens_per_s * flops_per_token(shape, settings), f"{tokens_per_s:,.0f} tokens/s, as given")


def measured_rate(device: str, dtype: str) -> Rate:
    """Time one matrix product here, in a fraction of a second, and return what a training step makes of that speed."""
    import torch

    rows, inputs, outputs = PRODUCT
    left = torch.ones(rows, inputs, dtype=getattr(torch, dtype), device=device)
    right = torch.ones(outputs, inputs, dtype=getattr(torch, dtype), device=device)
    times = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        torch.nn.functional.linear(left, right)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    speed = 2 * rows * inputs * outputs / min(times[1:])
    share = SHARE_OF_PRODUCTS[dtype]
    return Rate(share * speed, f"{share:.0%} of {speed / 1e9:,.0f} GFLOP/s, the speed of one {dtype} product here")


def _inner(layer: Any, settings: RunSettings) -> int:
    return int(settings.adapter.r * (layer.inputs + layer.outputs))


def _spared(layer: Any, shape: ModelShape, settings: RunSettings, size: AdapterSize) -> bool:
    """Whether computing a block again stops before this layer, its last one.

    torch's checkpoint ends when it has again what the forward pass kept; of a dense layer that is before its product is taken,
    of adapters and quantized layers after it.
    """
    last = layer.inputs == shape.intermediate != layer.outputs
    return last and layer.name not in size.names and not stays_quantized(settings.plan.spec)
