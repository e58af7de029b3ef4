"""How does the difficulty of rounding activations move into the weights, where it does less harm?

A few input channels of a layer are a hundred times larger than the rest, always the same ones, and set the step of every
token's grid. SmoothQuant (Xiao et al. 2022, arXiv:2211.10438, section 4) divides channel j of the activations by

    s_j = max|X_j|^α / max|W_j|^(1−α)                                                                      (equation 4)

and multiplies column j of the weights by it: (X·diag(s)⁻¹)·(diag(s)·Wᵀ) = X·Wᵀ. The division costs nothing at run time: it
goes into whatever produces X, a norm's weight or the rows of the layer before (`quantkit.numerics.graph` finds both). The
paper takes one α for the whole model; `alpha="search"` takes the one that leaves the least output error for each site, or
none at all where smoothing does not help. Weights stay float32 from folding to rounding: rounding them to bfloat16 in
between, as tools do that fold first and quantize afterwards, adds an error for nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quantkit.backends.compressed_tensors import round_tokens
from quantkit.numerics.capture import Block
from quantkit.numerics.graph import Site, divide_outputs
from quantkit.numerics.grids import QuantizedWeight, UniformGrid, quantize

ALPHAS = tuple(step / 10 for step in range(11))
"""Exponents that a search tries, besides no smoothing."""
SAMPLE = 512
"""Tokens on which a search measures output errors."""
SMALLEST = 1e-5
"""Least factor, and least maximum that counts as one (the paper's own code has the same)."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is known of a layer's inputs."""

    largest: Tensor
    """float32 `[in]`: max|X_j| over all calibration tokens, as they are. Maxima over tokens brought to one length, where the
    huge first one does not decide, did worse in a trial with SmolLM2 (mean KL at α = 0.5: 0.0145 → 0.0183). Why is not known:
    the gap stays when the first token is left unrounded."""
    sample: Tensor
    """`[tokens, in]`: some of the tokens."""


def smooth_block(
    block: Block, sites: Sequence[Site], grid: UniformGrid, *, alpha: float | Literal["search"], activations_bits: int
) -> dict[str, QuantizedWeight]:
    """Fold factors into every site of a block and round its weights, float32 in between; return name → quantized weight.

    Norms, biases and layers on the ignore list are changed in the block itself.
    """
    weights = {name: linear.weight.detach().float() for name, linear in block.linears.items()}
    modules = dict(block.module.named_modules(prefix=block.name))
    sites = [site for site in sites if any(name in weights for name in site.consumers)]
    seen = watch_inputs(block, [_quantized(site, weights) for site in sites])
    for site in sites:
        first = _quantized(site, weights)
        dense = {name: weights[name] if name in weights else modules[name].weight.detach().float() for name in site.consumers}
        if alpha == "search":
            rounded = {name: weights[name] for name in site.consumers if name in weights}
            factors = search_factors(seen[first], dense, rounded, site.channels, grid=grid, activations_bits=activations_bits)
        else:
            factors = factors_of(seen[first].largest, _largest_column(dense), site.channels, alpha)
        _fold(site, factors, weights, modules)
    return {name: quantize(weight, grid, layer=name) for name, weight in weights.items()}


def factors_of(activations: Tensor, columns: Tensor, channels: Tensor, alpha: float) -> Tensor:
    """Return s `[out of the producer]` by equation 4, from max|X_j| and max|W_j| `[in of the consumers]`.

    Channels that come from one producer channel share a factor, that of their maxima. Channels without input or without
    weights are left alone (factor 1).
    """
    channels = channels.to(activations.device)
    count = int(channels.max()) + 1
    x = torch.zeros(count, device=activations.device).scatter_reduce_(0, channels, activations.float(), "amax")
    w = torch.zeros(count, device=activations.device).scatter_reduce_(0, channels, columns.float(), "amax")
    factors = x.clamp(min=SMALLEST).pow(alpha) / w.clamp(min=SMALLEST).pow(1 - alpha)
    return torch.where((x > 0) & (w > 0), factors.clamp(min=SMALLEST), torch.ones_like(factors))


def search_factors(
    inputs: Inputs,
    dense: Mapping[str, Tensor],
    rounded: Mapping[str, Tensor],
    channels: Tensor,
    *,
    grid: UniformGrid,
    activations_bits: int,
) -> Tensor:
    """Return the factors of the α with the least `output_error` over the layers in `rounded`; ones where none helps.

    `dense` are the weights of all consumers `[out, in]`, which set max|W_j|.
    """
    columns = _largest_column(dense)
    ones = torch.ones(int(channels.max()) + 1, device=columns.device)
    candidates = [ones, *(factors_of(inputs.largest, columns, channels, alpha) for alpha in ALPHAS)]
    errors = [
        output_error(inputs.sample, rounded, item[channels.to(item.device)], grid, activations_bits) for item in candidates
    ]
    return candidates[min(range(len(errors)), key=errors.__getitem__)]


def output_error(
    inputs: Tensor, weights: Mapping[str, Tensor], factors: Tensor, grid: UniformGrid, activations_bits: int
) -> float:
    """Return Σ ‖Q(x/s)·Q(s·W)ᵀ − x·Wᵀ‖² / ‖x·Wᵀ‖² over the tokens of X `[tokens, in]` and its layers, for s `[in]`.

    Each token counts alike. The first token of a text is often a thousand times larger than the others, and nothing depends
    on its exact value: in a plain sum of squares it alone would decide.
    """
    smooth = round_tokens((inputs.float() / factors).to(inputs.dtype), activations_bits).float()
    total = 0.0
    for name, weight in weights.items():
        levels = quantize(weight * factors, grid, layer=name).dequantize().float()
        wanted = inputs.float() @ weight.T
        sizes = wanted.square().sum(1).clamp(min=torch.finfo(torch.float32).tiny)
        total += float(((smooth @ levels.T - wanted).square().sum(1) / sizes).sum())
    return total


def watch_inputs(block: Block, names: Sequence[str]) -> dict[str, Inputs]:
    """Return what enters these layers over all calibration batches."""
    largest: dict[str, Tensor] = {}
    samples: dict[str, list[Tensor]] = {name: [] for name in names}
    share = -(-SAMPLE // max(len(block.hidden), 1))

    def see(name: str, inputs: Tensor) -> None:
        found = inputs.abs().amax(0).float()
        largest[name] = torch.maximum(largest[name], found) if name in largest else found
        samples[name].append(inputs[:: max(len(inputs) // share, 1)][:share])

    block.watch(see, list(dict.fromkeys(names)), block.hidden)
    return {name: Inputs(largest[name], torch.cat(samples[name])) for name in names}


@torch.no_grad()
def _fold(site: Site, factors: Tensor, weights: dict[str, Tensor], modules: Mapping[str, torch.nn.Module]) -> None:
    producer = modules[site.producer]
    applied = factors
    if site.producer in weights:
        weights[site.producer] = weights[site.producer] / factors.unsqueeze(1)
        if isinstance(producer.bias, Tensor):
            producer.bias.copy_(producer.bias.float() / factors)
    else:
        applied = divide_outputs(producer, site, factors)
    columns = applied[site.channels.to(applied.device)]
    for name in site.consumers:
        if name in weights:
            weights[name] = weights[name] * columns
        else:
            parameter = modules[name].get_parameter("weight")
            parameter.copy_(parameter.float() * columns)


def _quantized(site: Site, weights: Mapping[str, Tensor]) -> str:
    return next(name for name in site.consumers if name in weights)


def _largest_column(weights: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([weight.abs().amax(0) for weight in weights.values()]).amax(0)
