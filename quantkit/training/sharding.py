"""How do several processes hold one model, each a part of it?

torch's `fully_shard` (FSDP2) splits the weights of every decoder block over the processes and gathers a block's for as long as
it computes. Adapters on frozen weights stay whole everywhere and their gradients are averaged by DDP, as in a run that splits
nothing: steps, checkpoints and hashes are the same. Where nothing is frozen, all is split, gradients and optimizer states with
the weights; `quantkit.training.parts` writes and reads those. accelerate's plugin, the alternative, splits adapters as well,
which makes a collective of every checkpoint and guard to save a few hundredths of the memory; it leaves 4-bit weights in
`uint8` whole; and on a CPU it is passed over without a word.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from quantkit.errors import UsageError
from quantkit.processes import is_first

Slot = tuple[Any, str]
"""A module and the name of one of its parameters."""


@contextmanager
def split_over_processes(model: Any, *, device: str, arithmetic: str = "float32", wanted: bool = True) -> Iterator[None]:
    """Hold a part of the model's weights in each process within, on `device`, where the model need not be before.

    Those are the frozen ones, or, where none is frozen, all: then processes keep float32 parts, send weights in the data type
    of the `arithmetic`, and gradients in float32. Afterwards the first process has them whole, where they were; in
    the others they are gone. After an error they stay in parts: gathering them would wait for processes that may have ended.

    Raises:
        UsageError: no decoder blocks are found, or the weights are of a kind that cannot be split.
    """
    if not wanted:
        yield
        return
    home = next(model.parameters()).device
    blocks = _blocks(model)
    apart = _to_split(model)
    whole = {item for item in model.parameters() if item not in apart}
    added = _split([*blocks, model], device, whole=whole, sent_as=None if whole else arithmetic)
    _let_go(apart)
    yield
    for part in blocks:
        part.reshard()
    model.reshard()
    _gather(apart, home)
    _undo(added)
    model.to(home)


def averaged(model: Any) -> Any:
    """Return a split model in DDP, which averages the gradients of what is whole in every process.

    Where all is split, `fully_shard` averages them, in each pass: between passes, a process holds its part of them only.
    """
    from torch.distributed.tensor import DTensor
    from torch.nn.parallel import DistributedDataParallel

    if trains_parts(model):
        from quantkit.training.parts import Called

        return Called(model)
    parts = [name for name, item in model.named_parameters(remove_duplicate=False) if isinstance(item, DTensor)]
    model._ddp_params_and_buffers_to_ignore = parts
    try:
        return DistributedDataParallel(model)
    finally:
        del model._ddp_params_and_buffers_to_ignore


def is_split(model: Any) -> bool:
    """Return whether a model's weights are split over processes now."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def trains_parts(model: Any) -> bool:
    """Return whether what is trained of a model is split over processes now."""
    return is_split(model) and all(item.requires_grad for item in model.parameters())


def whole_modules(model: Any) -> Iterator[Any]:
    """Yield every module of a model once, those of a split block while its weights are gathered."""
    seen: set[Any] = set()

    def visit(module: Any) -> Iterator[Any]:
        if module in seen:
            return
        seen.add(module)
        part = is_split(module)
        if part:
            module.unshard()
        yield module
        for child in module.children():
            yield from visit(child)
        if part:
            module.reshard()

    return visit(model)


def _blocks(model: Any) -> list[Any]:
    from quantkit.layers import bare_model
    from quantkit.numerics.capture import find_blocks

    try:
        return list(find_blocks(bare_model(model))[1])
    except UsageError:
        raise UsageError(f"sharding is fsdp2, but {type(bare_model(model)).__name__} has no list of decoder blocks") from None


def _to_split(model: Any) -> dict[Any, list[Slot]]:
    """Return each frozen parameter, or all where none is, and where it stands; tied ones stand in several places.

    Raises:
        UsageError: one is of a class that keeps facts beside its values, which would be lost.
    """
    import torch

    found: dict[Any, list[Slot]] = {}
    all_trained = all(item.requires_grad for item in model.parameters())
    for path, module in model.named_modules():
        for name, item in module.named_parameters(recurse=False):
            if item.requires_grad and not all_trained:
                continue
            if type(item) is not torch.nn.Parameter and getattr(module, "quant_state", None) is None:
                raise UsageError(
                    f"sharding is fsdp2, but {path}.{name} is a {type(item).__name__}, which cannot be split; use NoQuant,"
                    " QLORA or BNB4BIT, or leave sharding out: each process then has a copy"
                )
            found.setdefault(item, []).append((module, name))
    return found


def _split(modules: list[Any], device: str, *, whole: set[Any], sent_as: str | None) -> list[tuple[Any, type, list[str]]]:
    """Split modules, inner ones first, but for what stays `whole`; return of each its class before, and attributes added."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    root = modules[-1]
    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    as_held = MixedPrecisionPolicy(cast_forward_inputs=False)
    sent = as_held if sent_as is None else replace(as_held, param_dtype=getattr(torch, sent_as), reduce_dtype=torch.float32)
    before = [(module, type(module), set(vars(module))) for module in root.modules()]
    for module in modules:
        module.to(device)
        fully_shard(
            module, mesh=mesh, mp_policy=as_held if module is root else sent, ignored_params=whole & set(module.parameters())
        )
    return [(module, kind, sorted(set(vars(module)) - names)) for module, kind, names in before]


def _let_go(apart: dict[Any, list[Slot]]) -> None:
    """Free the memory of parameters whose parts `fully_shard` has copied."""
    for item in apart:
        item.data = item.data.new_empty(0)


def _gather(apart: dict[Any, list[Slot]], home: Any) -> None:
    """Put whole weights into the first process's parameters, and the parameters back in their places."""
    for item, slots in apart.items():
        module, name = slots[0]
        whole = module._parameters[name].full_tensor()
        if is_first():
            item.data = whole.to(home)
        for module, name in slots:
            module._parameters[name] = item


def _undo(added: list[tuple[Any, type, list[str]]]) -> None:
    """Take what `fully_shard` has added off modules: class, hooks, marks. torch has no call for it."""
    from torch.distributed import _composable_state

    for module, kind, names in added:
        module.__class__ = kind
        tables = [table for name, table in vars(module).items() if "hook" in name and isinstance(table, dict)]
        keys = {key for table in tables for key, hook in table.items() if _of_fsdp(hook)}
        for table in tables:
            for key in keys:
                table.pop(key, None)
        for name in names:
            vars(module).pop(name, None)
        _composable_state._module_state_mapping.pop(module, None)


def _of_fsdp(hook: Any) -> bool:
    """Return whether a hook is torch's, also one that is wrapped, as those before loading a state are."""
    return str(getattr(getattr(hook, "hook", hook), "__module__", "")).startswith("torch.distributed.fsdp")
