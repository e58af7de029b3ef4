"""Which orthogonal matrices can be multiplied into a model's weights without changing what it computes?

QuaRot (Ashkboos et al. 2024, arXiv:2404.00456, section 4), the parts that leave nothing to do at run time. With x the residual
stream as a row vector:

* **R1** `[width, width]` turns the stream, x → x·R. RMSNorm(x·R) = RMSNorm(x)·R once the norm's own weights g are gone, so they
  move into the layers that read it: W → W·diag(g)·R. Layers that write to the stream become Rᵀ·W, the embeddings E·R, the head
  W·diag(g)·R. Embeddings and head are different matrices then, so tied ones are untied.
* **R2** `[head, head]` turns the values of each head: rows of v by R2ᵀ, columns of the attention output by R2. Attention mixes
  tokens, not the channels of a head, so the two cancel.

Hadamard matrices with random signs spread a large channel over all of them, which takes the outliers out of activations and
weights. Rotations after non-linear parts (R3 between queries and keys, R4 before the down projection) need a transform at
run time, for which no checkpoint format has a place: a reload would compute something else, so they are not offered.

Nothing is matched by name or family. `fold_sites` says who reads a norm, and after each block is rotated it is run, in float32,
beside what it was: a model whose norms subtract means, or normalise what is written to the stream, is refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quantkit.errors import UsageError
from quantkit.numerics.capture import Batch, Block, Calls, find_blocks, record_calls
from quantkit.numerics.graph import EXACT, Site, fold_sites

PROBE_TOKENS = 32
"""Tokens with which blocks are run to see that nothing changed."""


@torch.no_grad()
def rotate_model(model: Any, residual: Tensor | None, values: Tensor | None, *, ignore: tuple[str, ...] = ()) -> bool:
    """Fold R1 `[width, width]` and R2 `[head, head]`, where given, into a model in place; return whether it was untied.

    Raises:
        UsageError: the model is not what the rotations need; nothing can be said about its weights then.
    """
    name, modules = find_blocks(model)
    probe = _probe(model)
    calls = record_calls(model, list(modules), [probe])
    after = None if residual is None else _tail(model, modules, probe)
    untied = residual is not None and untie(model)
    for index, module in enumerate(modules):
        block = Block(f"{name}.{index}", index, module, calls, ignore=ignore, device=str(next(module.parameters()).device))
        block.hidden = calls.hidden
        rotate_block(block, residual, values)
    if residual is not None and after is not None:
        norm, hidden = after
        _rotate_head(model, norm, hidden, residual)
        _rotate_embeddings(model, modules, calls, probe, residual)
    return untied


@torch.no_grad()
def rotate_block(block: Block, residual: Tensor | None, values: Tensor | None) -> None:
    """Fold R1 and R2 into one block in place; its norms have no weights of their own afterwards.

    Raises:
        UsageError: the rotated block computes something else.
    """
    sites = fold_sites(block)
    modules = dict(block.module.named_modules(prefix=block.name))
    with _widened(block.module):
        hidden = block.hidden[0].float()
        before = block.run(0, hidden)
        if values is not None:
            pairs = [site for site in sites if site.kind == "linear" and _try_values(block, site, modules, values, before)]
            if not pairs:
                raise UsageError(
                    f"{block.name}: no value projection whose heads of {len(values)} could be rotated was found; switch R2 off"
                    " (r2=false)"
                )
        if residual is not None:
            _rotate_stream([site for site in sites if site.kind == "norm"], modules, residual)
            turned = _turn(before, residual)
            found = block.run(0, _turn(hidden, residual))
            _require_same(found, turned, f"{block.name} with a rotated residual stream")


def untie(model: Any) -> bool:
    """Give the head a weight of its own if it shares that of the embeddings; return whether it did."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None:
        raise UsageError(f"{type(model).__name__} has no output head; only causal language models can be rotated")
    tied = head.weight is embeddings.weight
    if tied:
        head.weight = nn.Parameter(embeddings.weight.detach().clone(), requires_grad=embeddings.weight.requires_grad)
    for config in {id(item): item for item in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
    return tied


def _rotate_stream(sites: list[Site], modules: dict[str, nn.Module], rotation: Tensor) -> None:
    readers = {name for site in sites for name in site.consumers}
    for site in sites:
        norm = modules[site.producer]
        weight = norm.get_parameter("weight")
        if isinstance(getattr(norm, "bias", None), Tensor):
            raise UsageError(
                f"{site.producer} has a bias; a norm that shifts its output cannot be rotated with the residual stream"
                " (r1=false leaves the stream as it is)"
            )
        gains = weight + site.offset
        for name in site.consumers:
            reader = modules[name].get_parameter("weight")
            reader.copy_(times(reader.double() * gains.double(), rotation))
        weight.fill_(1 - site.offset)
    for name, module in modules.items():
        if type(module) is nn.Linear and name not in readers:
            if module.out_features != len(rotation):
                raise UsageError(
                    f"{name} neither reads a norm nor writes to the residual stream (it has {module.out_features} outputs, not"
                    f" {len(rotation)}); R1 does not fit this model (r1=false)"
                )
            module.weight.copy_(times(rotation.T.to(module.weight.device), module.weight))
            if module.bias is not None:
                module.bias.copy_(times(module.bias.unsqueeze(0), rotation).squeeze(0))


def _try_values(block: Block, site: Site, modules: dict[str, nn.Module], rotation: Tensor, before: Tensor) -> bool:
    """Rotate the heads of a producer and its consumer if that is exact (it is for values, not for gated products)."""
    size = len(rotation)
    heads = site.channels.reshape(-1, size) if len(site.channels) % size == 0 else None
    if heads is None or not torch.equal(heads, heads[:, :1] + torch.arange(size)) or bool((heads[:, 0] % size).any()):
        return False
    producer, consumer = modules[site.producer], modules[site.consumers[0]]
    saved = [(item, item.clone()) for module in (producer, consumer) for item in module.parameters(recurse=False)]
    weight = producer.get_parameter("weight")
    turned = times(rotation.T.to(weight.device), weight.reshape(-1, size, weight.shape[1]))
    weight.copy_(turned.reshape(weight.shape))
    if isinstance(producer.bias, Tensor):
        producer.bias.copy_(times(producer.bias.reshape(-1, size), rotation).flatten())
    columns = consumer.get_parameter("weight")
    columns.copy_(times(columns.reshape(len(columns), -1, size), rotation).reshape(columns.shape))
    if _difference(block.run(0, block.hidden[0].float()), before) <= EXACT:
        return True
    for item, old in saved:
        item.copy_(old)
    return False


def _rotate_head(model: Any, norm: nn.Module, hidden: Tensor, rotation: Tensor) -> None:
    head = model.get_output_embeddings()
    with _widened(norm), _widened(head):
        before = head(norm(hidden.float()))
        gains, offset = norm.get_parameter("weight"), 0.0
        for offset in (0.0, 1.0):
            saved = gains.clone()
            gains.fill_(-offset)
            silent = not bool(norm(hidden.float()).any())
            gains.copy_(saved)
            if silent:
                break
        head.weight.copy_(times(head.weight.double() * (gains.double() + offset), rotation))
        gains.fill_(1 - offset)
        _require_same(head(norm(_turn(hidden.float(), rotation))), before, "the output head with a rotated residual stream")


def _rotate_embeddings(model: Any, modules: nn.ModuleList, calls: Calls, probe: Batch, rotation: Tensor) -> None:
    weight = model.get_input_embeddings().weight
    weight.copy_(times(weight, rotation))
    found = record_calls(model, list(modules), [probe]).hidden[0].float()
    tolerance = max(EXACT, 4 * torch.finfo(weight.dtype).eps)
    _require_same(found, _turn(calls.hidden[0].float(), rotation), "what enters the first block", tolerance)


def _tail(model: Any, modules: nn.ModuleList, probe: Batch) -> tuple[nn.Module, Tensor]:
    """Return the norm that the head reads, and what enters it.

    Raises:
        UsageError: the head reads something else.
    """
    inside = {part for module in modules for part in module.modules()}
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    read: list[Tensor] = []
    handles = [model.get_output_embeddings().register_forward_pre_hook(lambda _, args: read.append(args[0]))]
    for module in model.modules():
        weight = module._parameters.get("weight")
        if module not in inside and weight is not None and weight.ndim == 1:
            handles.append(module.register_forward_hook(lambda part, args, out: seen.update({part: (args[0], out)})))
    try:
        model(**probe, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    for norm, (entered, left) in seen.items():
        if read and read[0].untyped_storage().data_ptr() == left.untyped_storage().data_ptr():
            return norm, entered
    raise UsageError(f"the output head of {type(model).__name__} reads no norm; R1 does not fit this model (r1=false)")


def times(left: Tensor, right: Tensor) -> Tensor:
    """Return left·right as float32, multiplied in float64."""
    return (left.double() @ right.double().to(left.device)).float()


def _turn(hidden: Tensor, rotation: Tensor) -> Tensor:
    return times(hidden, rotation)


def _difference(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm().clamp(min=1e-30))


def _require_same(found: Tensor, wanted: Tensor, what: str, tolerance: float = EXACT) -> None:
    difference = _difference(found, wanted)
    if not difference <= tolerance:
        raise UsageError(
            f"{what} differs by {difference:.1%} from the model as it was; R1 needs RMSNorm before each part of a block and"
            " none behind it, and this model is built otherwise (r1=false leaves the stream as it is)"
        )


def _probe(model: Any) -> Batch:
    embeddings = model.get_input_embeddings()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, embeddings.num_embeddings, (1, PROBE_TOKENS), generator=generator)
    return {"input_ids": ids.to(embeddings.weight.device)}


@contextmanager
def _widened(module: nn.Module) -> Iterator[None]:
    """Let a module be computed and changed in float32; afterwards its parameters have their own data type again."""
    types = [(parameter, parameter.dtype) for parameter in module.parameters()]
    try:
        for parameter, _ in types:
            parameter.data = parameter.data.float()
        yield
    finally:
        for parameter, dtype in types:
            parameter.data = parameter.data.to(dtype)
