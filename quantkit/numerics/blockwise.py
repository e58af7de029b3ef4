"""How is a model quantized one decoder block at a time, so that a killed run goes on where it stopped?

For each block: capture, solve, put the dequantized weights in place, run it again to get the next block's input. So later
blocks are calibrated on what the quantized earlier ones really emit, and only one block and its inputs are on the device.
What is kept per block are codes and scales, not hidden states: on resume the finished blocks are only run forward again,
which costs a fraction of solving them and no disk. All-at-once capture of Hessians is faster but calibrates late layers on
inputs they will never see.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from quantkit.errors import QuantkitError, UsageError, VerificationError
from quantkit.files import new_folder, read_json, remove_folder, verify_manifest, write_json
from quantkit.numerics.capture import Batch, Block, find_blocks, record_calls


class Quantized(Protocol):
    """What a solver returns for a layer."""

    def dequantize(self) -> Tensor:
        """Return the weight `[out, in]` that loaders will compute with."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that state it."""
        ...


Q = TypeVar("Q", bound=Quantized)
Solver = Callable[[Block], Mapping[str, Q]]
"""Returns name → quantized weight for every layer of `block.linears`; may change other parameters of the block as well."""


@dataclass(frozen=True, slots=True)
class BlockReport:
    """What happened to one block."""

    name: str
    index: int
    count: int
    output_error: float | None
    """‖quantized − full‖² / ‖full‖² of the block's output streams; None without the full-precision stream."""
    duration_s: float
    resumed: bool
    """Whether the block was read back from an earlier run."""


@dataclass(frozen=True, slots=True)
class BlockStore(Generic[Q]):
    """Finished blocks of a run in a folder, so that the run can be resumed."""

    folder: Path
    settings: Mapping[str, Any]
    """Everything that determines the result, as JSON values: method, options, hashes of model and calibration."""
    restore: Callable[[Mapping[str, Tensor]], Q]
    """Builds a layer's quantized weight from its `tensors()`."""

    def open(self) -> None:
        """Create the folder or make sure that it belongs to the same settings.

        Raises:
            UsageError: it belongs to other settings; names those that differ.
        """
        path = self.folder / "settings.json"
        if not path.exists():
            write_json(path, dict(self.settings))
            return
        found = read_json(path)
        keys = sorted(set(found) | set(self.settings))
        differing = [key for key in keys if found.get(key) != self.settings.get(key)]
        if differing:
            raise UsageError(
                f"{self.folder} holds blocks of another run; {', '.join(differing)} differ"
                " (remove the folder to start anew, or give the settings of that run)"
            )

    def save(self, index: int, layers: Mapping[str, Q], others: Mapping[str, Tensor]) -> None:
        """Commit a finished block: its layers, and other parameters that the solver changed."""
        from safetensors.torch import save_file

        tensors = {f"layer/{name}/{key}": value for name, item in layers.items() for key, value in item.tensors().items()}
        tensors |= {f"other/{name}": value for name, value in others.items()}
        with new_folder(self._block(index), overwrite=True) as folder:
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, folder / "block.safetensors")

    def load(self, index: int) -> tuple[dict[str, Q], dict[str, Tensor]] | None:
        """Return a finished block, or None when it is not there or not whole (what is broken is removed)."""
        from safetensors.torch import load_file

        folder = self._block(index)
        if not folder.is_dir():
            return None
        try:
            verify_manifest(folder)
        except (VerificationError, UsageError):
            remove_folder(folder)
            return None
        layers: dict[str, dict[str, Tensor]] = {}
        others: dict[str, Tensor] = {}
        for key, value in load_file(folder / "block.safetensors").items():
            kind, _, rest = key.partition("/")
            if kind == "other":
                others[rest] = value
            else:
                name, _, part = rest.rpartition("/")
                layers.setdefault(name, {})[part] = value
        return {name: self.restore(parts) for name, parts in layers.items()}, others

    def _block(self, index: int) -> Path:
        return self.folder / f"block-{index:04d}"


def quantize_blocks(
    model: nn.Module,
    batches: Sequence[Batch],
    solve: Solver[Q],
    *,
    device: str = "cpu",
    ignore: Sequence[str] = (),
    compute_dtype: torch.dtype | None = None,
    reference: bool = False,
    sequential: bool = True,
    store: BlockStore[Q] | None = None,
    report: Callable[[BlockReport], None] = lambda _: None,
) -> dict[str, Q]:
    """Solve every block of the model in order; return name → quantized weight, the model holding the dequantized ones.

    `reference` keeps the full-precision stream beside the quantized one, which costs a second run of each block and a
    second set of inputs. `sequential` False calibrates on the full-precision stream throughout. `compute_dtype` is the
    data type blocks run in (None: their own); their parameters keep their own afterwards.

    Raises:
        UsageError: layers cannot be captured, or the store belongs to another run.
        QuantkitError: the solver left a layer out, or a block's output is not finite.
    """
    if not batches:
        raise UsageError("there is no calibration text; at least one batch is needed")
    list_name, modules = find_blocks(model)
    blocks = list(modules)
    if store is not None:
        store.open()
    was_training = model.training
    model.eval()
    try:
        calls = record_calls(model, blocks, batches)
        hidden, full = calls.hidden, calls.hidden if reference else None
        finished: dict[str, Q] = {}
        for index, module in enumerate(blocks):
            started = time.monotonic()
            block = Block(f"{list_name}.{index}", index, module, calls, ignore=ignore, device=device)
            with _on_device(module, device, compute_dtype):
                block.hidden, block.reference = hidden, full
                if full is not None or not sequential:
                    block.targets = block.outputs(hidden if full is None else full)
                known = None if store is None else store.load(index)
                layers = _solve(block, solve, store) if known is None else _replay(block, *known)
                finished |= layers
                hidden = block.outputs(hidden) if sequential or block.targets is None else block.targets
                calls.arguments[index] = []
            if not all(bool(item.isfinite().all()) for item in hidden):
                raise QuantkitError(f"the output of {block.name} is not finite after quantization; nothing was saved for it")
            error = None if full is None or block.targets is None else _relative_error(hidden, block.targets)
            full = None if full is None else block.targets
            duration = time.monotonic() - started
            report(BlockReport(block.name, index, len(blocks), error, duration, known is not None))
        return finished
    finally:
        model.train(was_training)


def _solve(block: Block, solve: Solver[Q], store: BlockStore[Q] | None) -> dict[str, Q]:
    weights = {f"{name}.weight" for name in block.linears}
    before = {key: value.detach().clone() for key, value in block.module.named_parameters(block.name) if key not in weights}
    layers = dict(solve(block))
    missing = set(block.linears) - set(layers)
    if missing:
        raise QuantkitError(f"the solver returned nothing for {', '.join(sorted(missing))}")
    _put(block, layers)
    if store is not None:
        after = dict(block.module.named_parameters(block.name))
        store.save(block.index, layers, {key: after[key] for key in before if not torch.equal(before[key], after[key])})
    return layers


def _replay(block: Block, layers: dict[str, Q], others: Mapping[str, Tensor]) -> dict[str, Q]:
    if set(layers) != set(block.linears):
        raise UsageError(f"the stored {block.name} has other layers than the model; remove the folder of the earlier run")
    parameters = dict(block.module.named_parameters(block.name))
    with torch.no_grad():
        for key, value in others.items():
            parameters[key].copy_(value)
    _put(block, layers)
    return layers


@torch.no_grad()
def _put(block: Block, layers: Mapping[str, Quantized]) -> None:
    for name, item in layers.items():
        block.linears[name].weight.copy_(item.dequantize())


class _on_device:  # noqa: N801 - reads as the context it is
    """Keep a block on a device, in a data type, for the length of a `with`; afterwards each tensor is as it was."""

    def __init__(self, module: nn.Module, device: str, dtype: torch.dtype | None) -> None:
        self.module, self.device, self.dtype = module, device, dtype
        self.homes = {key: (value.device, value.dtype) for key, value in module.state_dict(keep_vars=True).items()}

    def __enter__(self) -> None:
        self.module.to(device=self.device, dtype=self.dtype)

    def __exit__(self, *_: object) -> None:
        for key, value in self.module.state_dict(keep_vars=True).items():
            device, dtype = self.homes[key]
            value.data = value.data.to(device, dtype)


def _relative_error(streams: Sequence[Tensor], targets: Sequence[Tensor]) -> float:
    distance = sum(float((a.float() - b.float()).square().sum()) for a, b in zip(streams, targets, strict=True))
    size = sum(float(item.float().square().sum()) for item in targets)
    return distance / size if size else 0.0
