"""Where in a decoder block can a channel be scaled in one place and unscaled in another without changing what it computes?

A site is a module and the linear layers that read its output, channel by channel: a norm and the projections behind it, v and
o (the attention mixes tokens, not channels), up and down (their product is taken channel by channel). Sites are found by
looking, not by names: whose output tensor is it that a layer reads, and which input channels of a layer grow by exactly the
factor that was put on a producer's output channel. Each is then tried with random factors, and kept only if the block's output
stays the same: so Gemma's norms (1 + w), grouped queries, and norms that something else reads too come out right without a
list of architectures. Tables of module names per family are what breaks with every new family.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quantkit.numerics.capture import Block

EXACT = 1e-4
"""Largest relative change (norm) of a block's float32 output that counts as none."""


@dataclass(frozen=True, slots=True)
class Site:
    """A producer whose output channels can be divided by factors with which its consumers' columns are multiplied."""

    producer: str
    """Name of a norm or linear layer."""
    consumers: tuple[str, ...]
    """Names of all linear layers that read it, also of those on the ignore list: folding changes all of them."""
    kind: Literal["norm", "linear"]
    channels: Tensor
    """int64 `[in]`: the producer's output channel behind each input channel of the consumers; each occurs, with grouped queries
    more than once."""
    offset: float = 0.0
    """What the norm adds to its weight before multiplying: 1 for norms that keep w − 1."""


@torch.no_grad()
def fold_sites(block: Block) -> list[Site]:
    """Return the sites of a block in the order of their consumers, tried out on the first calibration batch."""
    modules = dict(block.module.named_modules(prefix=block.name))
    linears = {name: module for name, module in modules.items() if type(module) is nn.Linear}
    with _in_float32(block.module), _first_row(block):
        outputs: dict[str, Tensor] = {}
        inputs, expected = _watch(block, modules, linears, outputs)
        sites = []
        for name, consumers in _readers(inputs, outputs).items():
            offset = _norm_offset(block, modules[name])
            if offset is not None:
                channels = torch.arange(linears[consumers[0]].in_features)
                sites.append(Site(name, tuple(consumers), "norm", channels, offset))
        fed_by_norm = {name for site in sites for name in site.consumers}
        open_ended = {name: inputs[name] for name in linears if name in inputs and name not in fed_by_norm}
        for name, producer in linears.items():
            found = _scaled_with(block, producer, linears, {key: value for key, value in open_ended.items() if key != name})
            sites += [Site(name, (consumer,), "linear", channels) for consumer, channels in found.items()]
        kept = [site for site in sites if _holds(block, site, expected)]
    order = list(linears)
    return sorted(kept, key=lambda site: order.index(site.consumers[0]))


@torch.no_grad()
def fold(modules: nn.Module | Callable[[str], nn.Module], site: Site, factors: Tensor) -> Tensor:
    """Divide the producer's output channels by `factors` `[out]`, multiply the consumers' columns by them.

    `modules` is the model, or what gives a module for its name. Factors are positive. A norm's new weight is rounded to its
    own data type first, and the columns are multiplied by what it was really divided by, which is returned `[out]`, float32.
    """
    find = modules.get_submodule if isinstance(modules, nn.Module) else modules
    applied = divide_outputs(find(site.producer), site, factors)
    for name in site.consumers:
        weight = _parameter(find(name), "weight")
        weight.copy_(weight.float() * applied.to(weight.device)[site.channels.to(weight.device)])
    return applied


@torch.no_grad()
def divide_outputs(producer: nn.Module, site: Site, factors: Tensor) -> Tensor:
    """Divide a producer's output channels by `factors` `[out]`; return what they were really divided by, float32 `[out]`.

    For a norm that is the quotient of old and new weight after rounding; a linear layer's rows take the factors as they are.
    """
    weight, bias = _parameter(producer, "weight"), getattr(producer, "bias", None)
    factors = factors.float().to(weight.device)
    if site.kind == "norm":
        before = weight.float() + site.offset
        weight.copy_(before / factors - site.offset)
        after = weight.float() + site.offset
        usable = (before != 0) & (after != 0)
        factors = torch.where(usable, before / torch.where(usable, after, torch.ones_like(after)), torch.ones_like(before))
    else:
        weight.copy_(weight.float() / factors.unsqueeze(1))
    if isinstance(bias, Tensor):
        bias.copy_(bias.float() / factors)
    return factors


def _parameter(module: nn.Module, name: str) -> Tensor:
    value = getattr(module, name)
    if not isinstance(value, Tensor):
        raise TypeError(f"{type(module).__name__}.{name} is no tensor")
    return value


def _watch(
    block: Block, modules: dict[str, nn.Module], linears: dict[str, nn.Linear], outputs: dict[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """Run the first batch; return each linear layer's input and the block's output, and fill in what norms put out."""
    inputs: dict[str, Tensor] = {}

    def reads(name: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs[name] = args[0]

        return note

    def writes(name: str) -> Callable[..., None]:
        def note(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor):
                outputs[name] = output

        return note

    handles = [module.register_forward_pre_hook(reads(name)) for name, module in linears.items()]
    for name, module in modules.items():
        weight = module._parameters.get("weight")
        if weight is not None and weight.ndim == 1 and not list(module.children()):
            handles.append(module.register_forward_hook(writes(name)))
    try:
        expected = block.run(0, block.hidden[0])
    finally:
        for handle in handles:
            handle.remove()
    return inputs, expected


def _readers(inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for producer, output in outputs.items():
        readers = [
            name
            for name, read in inputs.items()
            if read.untyped_storage().data_ptr() == output.untyped_storage().data_ptr() and read.shape[-1] == output.shape[-1]
        ]
        if readers:
            found[producer] = readers
    return found


def _norm_offset(block: Block, norm: nn.Module) -> float | None:
    """Return which constant a norm adds to its weight, found by making it put out zero; None: neither 0 nor 1."""
    outputs: dict[str, Tensor] = {}
    for offset in (0.0, 1.0):
        outputs.clear()
        with _kept(norm):
            _parameter(norm, "weight").fill_(-offset)
            if isinstance(getattr(norm, "bias", None), Tensor):
                _parameter(norm, "bias").zero_()
            _watch(block, {"norm": norm}, {}, outputs)
        if not bool(outputs["norm"].any()):
            return offset
    return None


def _scaled_with(
    block: Block, producer: nn.Linear, linears: dict[str, nn.Linear], before: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return consumer → channel map for layers whose every input channel scales with one of the producer's channels."""
    count = producer.out_features
    before = {name: old for name, old in before.items() if old.shape[-1] % count == 0}
    if not before:
        return {}
    factors = _probe(count, producer.weight.device, seed=0)
    with _kept(producer):
        producer.weight.mul_(factors.unsqueeze(1))
        if producer.bias is not None:
            producer.bias.mul_(factors)
        after, _ = _watch(block, {}, linears, {})
    found = {}
    for name, old in before.items():
        x, y = old.reshape(-1, old.shape[-1]), after[name].reshape(-1, old.shape[-1])
        ratio = (x * y).sum(0) / x.square().sum(0).clamp(min=1e-30)
        residual = (y - ratio * x).norm() / y.norm().clamp(min=1e-30)
        nearest = (ratio.unsqueeze(1) / factors - 1).abs().min(1)
        every = len(torch.unique(nearest.indices)) == count
        if every and residual < EXACT and bool((nearest.values < 1e-4).all()):
            found[name] = nearest.indices.cpu()
    return found


def _holds(block: Block, site: Site, expected: Tensor) -> bool:
    """Whether random factors at this site leave the block's output as it is."""
    modules = dict(block.module.named_modules(prefix=block.name))
    producer = modules[site.producer]
    count = _parameter(producer, "weight").shape[0]
    with _kept(producer, *(modules[name] for name in site.consumers)):
        fold(modules.__getitem__, site, _probe(count, expected.device, seed=1))
        changed = block.run(0, block.hidden[0])
    return bool((changed - expected).norm() <= EXACT * expected.norm())


def _probe(count: int, device: torch.device, *, seed: int) -> Tensor:
    """Return factors 1/8 … 8, all different, in an order without pattern."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return torch.logspace(-3, 3, count, base=2.0)[order].to(device)


@contextmanager
def _kept(*modules: nn.Module) -> Iterator[None]:
    """Put the modules' own parameters back afterwards."""
    before: Sequence[dict[str, Tensor]] = [
        {k: v.clone() for k, v in module._parameters.items() if v is not None} for module in modules
    ]
    try:
        yield
    finally:
        for module, values in zip(modules, before, strict=True):
            for key, value in values.items():
                _parameter(module, key).copy_(value)


@contextmanager
def _first_row(block: Block) -> Iterator[None]:
    """Let the block's first batch be its first row only: trying out a site runs the block once."""
    hidden, arguments = block.hidden, block.arguments
    rows = len(hidden[0])
    try:
        block.hidden, block.arguments = [hidden[0][:1]], [_first(arguments[0], rows)]
        yield
    finally:
        block.hidden, block.arguments = hidden, arguments


def _first(value: Any, rows: int) -> Any:
    if isinstance(value, Tensor):
        return value[:1] if value.ndim and len(value) == rows else value
    if isinstance(value, tuple | list):
        return type(value)(_first(item, rows) for item in value)
    return {key: _first(item, rows) for key, item in value.items()} if isinstance(value, dict) else value


@contextmanager
def _in_float32(module: nn.Module) -> Iterator[None]:
    """Let a block compute in float32; afterwards its parameters are the very tensors they were."""
    before = [(parameter, parameter.data) for parameter in module.parameters()]
    try:
        for parameter, data in before:
            parameter.data = data.float().clone()
        yield
    finally:
        for parameter, data in before:
            parameter.data = data
