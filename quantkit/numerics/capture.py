"""What enters each decoder block, when the model is larger than the memory of the device that computes?

The model's own forward pass runs once with its blocks switched off: each only notes the arguments it is called with
(masks, position embeddings; they differ between blocks in models with sliding windows) and hands its input on. After that
blocks are run one at a time, outside the model. Copying each family's preparation of masks and positions, the usual way,
needs code per family; hooks on the whole model need the whole model on the device.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from quantkit.errors import UsageError
from quantkit.numerics.hessian import HessianSum, equal_tokens

Batch = Mapping[str, Tensor]
"""Inputs of the model's forward pass: `input_ids` `[rows, tokens]`, with padding also `attention_mask`."""


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return name and module list of the decoder blocks: the list that holds the most parameters, outermost first.

    Raises:
        UsageError: the model has no list of modules.
    """
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists:
        raise UsageError(f"{type(model).__name__} has no list of decoder blocks, so it cannot be quantized block by block")
    name = max(lists, key=lambda item: sum(parameter.numel() for parameter in lists[item].parameters()))
    return name, lists[name]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a module name ends in one of the patterns: a dotted name with wildcards, or `re:` and an expression.

    >>> matches("model.layers.3.mlp.down_proj", ["down_proj"]), matches("model.layers.3.mlp", ["layers.*.attn"])
    (True, False)
    """
    for pattern in patterns:
        if pattern.startswith("re:"):
            if re.fullmatch(pattern[3:], name):
                return True
        elif fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}"):
            return True
    return False


@dataclass
class Calls:
    """How the model calls its blocks on each batch."""

    hidden: list[Tensor]
    """Input of the first block for each batch, `[rows, tokens, width]`."""
    masks: list[Tensor | None]
    """Which tokens count, bool `[rows, tokens]`; None: all."""
    arguments: list[list[tuple[tuple[Any, ...], dict[str, Any]]]]
    """Other arguments: `[block][batch]`."""


class _AllCalled(Exception):  # noqa: N818 - it ends a forward pass, it is no error
    pass


@torch.no_grad()
def record_calls(model: nn.Module, blocks: Sequence[nn.Module], batches: Sequence[Batch]) -> Calls:
    """Run the model up to its last block, with the blocks switched off, on every batch."""
    masks = [batch["attention_mask"].bool() if "attention_mask" in batch else None for batch in batches]
    if any(mask is not None and not bool(mask.any()) for mask in masks):
        raise UsageError("a calibration batch has no token that counts; its attention_mask is all zero")
    calls = _record(model, blocks, batches, masks, in_tuple=False)
    return calls if calls is not None else _required(_record(model, blocks, batches, masks, in_tuple=True), model)


def _record(
    model: nn.Module, blocks: Sequence[nn.Module], batches: Sequence[Batch], masks: list[Tensor | None], *, in_tuple: bool
) -> Calls | None:
    calls = Calls([], masks, [[] for _ in blocks])
    shape: torch.Size | None = None
    same = True

    def recorder(index: int) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            nonlocal shape, same
            hidden = args[0] if args else kwargs.pop("hidden_states")
            if index == 0:
                calls.hidden.append(hidden.detach().cpu())
                shape = hidden.shape
            same = same and isinstance(hidden, Tensor) and hidden.shape == shape
            calls.arguments[index].append((args[1:], kwargs))
            if index == len(blocks) - 1 or not same:
                raise _AllCalled
            return (hidden,) if in_tuple else hidden

        return record

    with _forwards({block: recorder(index) for index, block in enumerate(blocks)}):
        for batch in batches:
            try:
                model(**{key: value.to(_device(model)) for key, value in batch.items()}, use_cache=False)
            except _AllCalled:
                pass
            except Exception:
                if in_tuple:
                    raise
                return None
    return calls if same and all(len(item) == len(batches) for item in calls.arguments) else None


def _required(calls: Calls | None, model: nn.Module) -> Calls:
    if calls is None:
        raise UsageError(f"{type(model).__name__} does not hand each decoder block's output to the next; it cannot be captured")
    return calls


@contextmanager
def _forwards(replacements: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    try:
        for module, forward in replacements.items():
            module.forward = forward
        yield
    finally:
        for module in replacements:
            module.__dict__.pop("forward", None)


class Block:
    """One decoder block and everything needed to run it alone.

    `hidden` is its input in the model as quantized so far, one tensor `[rows, tokens, width]` a batch; `reference` and
    `targets` are input and output of the same block in the unquantized model, None unless they were asked for.
    """

    def __init__(self, name: str, index: int, module: nn.Module, calls: Calls, *, ignore: Sequence[str], device: str) -> None:
        self.name, self.index, self.module, self.device = name, index, module, device
        self.arguments, self.masks = calls.arguments[index], calls.masks
        self.hidden: list[Tensor] = []
        self.reference: list[Tensor] | None = None
        self.targets: list[Tensor] | None = None
        self.linears: dict[str, nn.Linear] = {}
        odd = []
        for path, part in module.named_modules(prefix=name):
            if matches(path, ignore):
                continue
            if type(part) is nn.Linear:
                self.linears[path] = part
            elif any(parameter.ndim > 1 for parameter in part.parameters(recurse=False)):
                odd.append(f"{path} ({type(part).__name__})")
        if odd:
            raise UsageError(f"cannot be quantized: {', '.join(odd)}; put them on the ignore list to leave them as they are")

    def run(self, batch: int, hidden: Tensor) -> Tensor:
        """Return the block's output `[rows, tokens, width]` for the input of this batch, on the block's device."""
        dtype = next(self.module.parameters()).dtype
        args, kwargs = _moved(self.arguments[batch], self.device, dtype)
        output = self.module(hidden.to(self.device, dtype), *args, **kwargs)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    @torch.no_grad()
    def outputs(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Return the outputs for inputs of all batches, on the CPU."""
        return [self.run(batch, item).cpu() for batch, item in enumerate(hidden)]

    @torch.no_grad()
    def watch(self, see: Callable[[str, Tensor], None], names: Sequence[str], hidden: Sequence[Tensor]) -> list[Tensor]:
        """Run all batches, hand each named layer's inputs `[tokens, in]` (padding left out) to `see`; return the outputs."""
        mask: Tensor | None = None

        def hook(name: str) -> Callable[..., None]:
            def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                whole = mask is None or args[0].shape[:-1] != mask.shape
                see(name, args[0].reshape(-1, args[0].shape[-1]) if whole else args[0][mask])

            return note

        handles = [self.linears[name].register_forward_pre_hook(hook(name)) for name in names]
        outputs = []
        try:
            for batch, item in enumerate(hidden):
                known = self.masks[batch]
                mask = None if known is None else known.to(self.device)
                outputs.append(self.run(batch, item).cpu())
        finally:
            for handle in handles:
                handle.remove()
        return outputs

    def groups(self) -> list[list[str]]:
        """Return the layers in the order they run, those that read the same tensor together.

        Raises:
            UsageError: a layer is not reached by the first batch; names it.
        """
        seen: dict[tuple[int, torch.Size], list[str]] = {}
        kept = []

        def see(name: str, inputs: Tensor) -> None:
            kept.append(inputs)  # so that no two inputs share an address
            seen.setdefault((inputs.data_ptr(), inputs.shape), []).append(name)

        saved, self.masks = self.masks, [None] * len(self.masks)
        try:
            self.watch(see, list(self.linears), self.hidden[:1])
        finally:
            self.masks = saved
        missing = set(self.linears) - {name for names in seen.values() for name in names}
        if missing:
            raise UsageError(
                f"no calibration token reaches {', '.join(sorted(missing))}; give more text or put them on the ignore list"
            )
        return list(seen.values())

    def hessians(
        self, groups: Sequence[Sequence[str]], hidden: Sequence[Tensor] | None = None, *, level: bool = False
    ) -> list[Tensor]:
        """Return H for each group of layers that read the same tensor, over all batches (`hidden` by default).

        `level` brings all tokens to one length first (`quantkit.numerics.hessian.equal_tokens`).
        """
        firsts = [group[0] for group in groups]
        sums = {name: HessianSum(self.linears[name].in_features, self.device) for name in firsts}

        def see(name: str, inputs: Tensor) -> None:
            sums[name].add(equal_tokens(inputs) if level else inputs)

        self.watch(see, firsts, self.hidden if hidden is None else hidden)
        return [sums[name].value() for name in firsts]


def _moved(value: Any, device: str, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(_moved(item, device, dtype) for item in value)
    if isinstance(value, dict):
        return {key: _moved(item, device, dtype) for key, item in value.items()}
    return value


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
