"""How can activations wait in the CPU's memory for the backward pass?

What autograd keeps of a forward pass is copied to pinned memory and fetched when the backward pass asks for it. Weights are
kept where they are: torch's own `save_on_cpu` would copy every frozen weight out and in again in each step, as linear layers
keep them, too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from quantkit.errors import UsageError

if TYPE_CHECKING:
    from quantkit.config import RunConfig

SMALLEST_BYTES = 1 << 20
"""Smaller tensors stay: copying them takes longer than it is worth."""


def check_offloading(config: "RunConfig", device: str) -> None:
    """Check that what is to leave a GPU's memory is in one.

    Raises:
        UsageError: activations are to be offloaded, or optimizer states paged, and the run is on no GPU.
    """
    if device.startswith("cuda"):
        return
    if config.optim and config.optim.startswith("paged_"):
        raise UsageError(
            f"optim is {config.optim}, which pages its states out of a GPU's memory, but device is {device}; use"
            f" {config.optim.removeprefix('paged_')}, or leave optim out"
        )
    if config.activation_offloading:
        raise UsageError(
            f"activation_offloading moves activations from a GPU's memory to the CPU's, but device is {device}; leave it out,"
            " or set recompute to selective or full"
        )


@contextmanager
def activations_offloaded(model: Any, *, wanted: bool = True, kind: str = "cuda") -> Iterator[list[int]]:
    """Keep what autograd saves within on the CPU; yields the bytes of each tensor that was moved.

    `kind` is the type of device to move tensors away from.
    """
    import torch

    moved: list[int] = []
    if not wanted:
        yield moved
        return
    weights = {item.untyped_storage().data_ptr() for item in (*model.parameters(), *model.buffers())}

    def pack(tensor: Any) -> tuple[Any, Any]:
        stays = tensor.device.type != kind or tensor.nbytes < SMALLEST_BYTES
        if stays or type(tensor) is not torch.Tensor or tensor.untyped_storage().data_ptr() in weights:
            return tensor, None
        moved.append(tensor.nbytes)
        copy = torch.empty(tensor.size(), dtype=tensor.dtype, layout=tensor.layout, pin_memory=tensor.is_cuda)
        return copy.copy_(tensor), tensor.device

    def unpack(packed: tuple[Any, Any]) -> Any:
        tensor, device = packed
        return tensor if device is None else tensor.to(device, non_blocking=tensor.is_pinned())

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield moved
