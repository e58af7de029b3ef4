"""How do weights and optimizer states that stand in parts in several processes become a checkpoint, and parts again?

Tensor by tensor they are gathered, and the first process writes them whole, into the files of a run that splits nothing: so a
checkpoint is one thing, whatever wrote it, and its hashes are of the weights. Each process reads its slices out of the same
files. torch's distributed checkpoints, the alternative, have a file per process that nothing else loads. Importing this module
imports torch.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.distributed.tensor import DTensor, distribute_tensor

from quantkit.headers import read_tensor_index
from quantkit.processes import is_first


class Called(torch.nn.Module):
    """A split model as transformers is to call it: as one that needs no wrapping, which averages its gradients by itself."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.module = model

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Call the model."""
        return self.module(*arguments, **named)


def whole_weights(model: Any) -> dict[str, Any]:
    """Return what `state_dict` would of a model that is not split, in the CPU's memory; nothing in other processes.

    All processes take part. Tied weights are one tensor under two names.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    state, seen, found = model.state_dict(), {}, {}
    for name, tensor in state.items():
        key = id(parameters.get(name, tensor))
        if key not in seen:
            seen[key] = _whole(tensor)
        found[name] = seen[key]
    return found if is_first() else {}


def whole_states(optimizer: Any) -> dict[str, Any]:
    """Return the `state_dict` of an optimizer as if nothing were split, in the first process; all take part."""
    state = optimizer.state_dict()
    found = {
        number: {name: _whole(value) if torch.is_tensor(value) else value for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": found}


@torch.no_grad()
def load_weights(model: Any, folder: Path) -> None:
    """Fill this process's parts of a split model from whole safetensors files."""
    index = read_tensor_index(folder)
    items = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    for name, item in items:
        if name in index.tensors:  # of tied weights, one name
            with safe_open(index.tensors[name].file, "pt") as stored:
                _local(item).copy_(_local(_like(item, stored.get_tensor(name))))


def load_states(optimizer: Any, file: Path) -> None:
    """Fill this process's parts of an optimizer's states from a whole `state_dict`."""
    state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    parameters = [item for group in optimizer.param_groups for item in group["params"]]
    for number, values in state["state"].items():
        for name, value in values.items():
            if torch.is_tensor(value) and name != "step":
                values[name] = _like(parameters[number], value)
    optimizer.load_state_dict(state)


def _whole(tensor: Any) -> Any:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.cpu() if is_first() else None


def _like(item: Any, whole: Any) -> Any:
    """Return a whole tensor in parts as `item` is; every process has it, so nothing is sent."""
    if not isinstance(item, DTensor):
        return whole
    return distribute_tensor(whole, item.device_mesh, item.placements, src_data_rank=None)


def _local(tensor: Any) -> Any:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
