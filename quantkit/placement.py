"""On which devices do the layers of a base stand?

On one, unless `device_map` spreads a dense base over several GPUs of a process, as transformers and accelerate spell it: each
layer computes where it stands, one after the other, and hooks of accelerate carry the activations. A base that is too large for
the GPUs is refused: accelerate would leave the rest on CPU or disk, where layers are fetched for a forward pass but get no
gradients. Several processes with parts of one model, the alternative that keeps all GPUs busy, is `sharding` fsdp2
(`quantkit.training.sharding`); what stands against it is said here, before a model is loaded.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quantkit.errors import UsageError
from quantkit.processes import world_size

if TYPE_CHECKING:
    from quantkit.config import RunConfig

AWAY = ("cpu", "disk", "meta")
"""Where a layer of a model that computes on GPUs cannot be trained through."""
ON_PARTS = ("adamw_torch", "adamw_torch_fused", "sgd")
"""Optimizers that look at each value by itself, so that a part of a weight is updated as it would be in the whole."""


def check_placement(config: "RunConfig", device: str, *, quantized: bool) -> None:
    """Check that the settings do not ask for two ways of using several devices at once, or for one that cannot be trained.

    Raises:
        UsageError: `device_map` is set, and the base is quantized, the run has several processes, splits the model, or the map
            sends layers away from the GPUs.
    """
    if config.device_map is None:
        return
    what = f"device_map is {config.device_map!r}"
    if world_size() > 1 or config.sharding != "none":
        raise UsageError(
            f"{what}, which spreads one model over the devices of one process, but the run has {world_size()} processes and"
            f" sharding {config.sharding}; start one process, or leave device_map out: with sharding fsdp2 each process holds a"
            " part of the model"
        )
    if quantized:
        raise UsageError(
            f"{what}, but the base is quantized; only 16-bit bases are spread over devices. A quantized one that is too large"
            " for a GPU is split by sharding fsdp2"
        )
    if isinstance(config.device_map, Mapping) and not device.startswith("cpu"):
        _refuse_away(config.device_map, what)


def check_splitting(config: "RunConfig") -> None:
    """Check that what is to be split over processes can be.

    Raises:
        UsageError: there is one process only, or a setting stands against it.
    """
    if config.sharding == "none":
        return
    if world_size() == 1:
        raise UsageError(
            "sharding is fsdp2, but the run has one process; start several with torchrun or accelerate launch"
            " (Fine-tuning/README.md), or leave it out"
        )
    if config.peft_config == "NoPeft" and config.optim not in (None, *ON_PARTS):
        raise UsageError(
            f"sharding is fsdp2 and peft_config is NoPeft, so the optimizer's states are split as well, but optim is"
            f" {config.optim!r}; use {', '.join(ON_PARTS)}, or an adapter"
        )
    if config.activation_offloading:
        raise UsageError(
            "sharding is fsdp2 and activation_offloading is on, which would move the weights gathered for a block as well;"
            " set recompute to full instead"
        )


def placement(device_map: Mapping[str, int | str] | str | None, device: str) -> Any:
    """Return the `device_map` to load with: the one asked for if it names modules or there are several GPUs, else one device.

    >>> placement("auto", "cpu"), placement(None, "cuda")
    ({'': 'cpu'}, {'': 'cuda'})
    """
    if device_map is None:
        return {"": device}
    if isinstance(device_map, str):
        from torch.cuda import device_count

        return device_map if device.startswith("cuda") and device_count() > 1 else {"": device}
    return dict(device_map)


def check_placed(model: Any, device: str) -> None:
    """Check that no layer of a loaded model was left on CPU or disk for want of room.

    Raises:
        UsageError: names those that were.
    """
    placed = getattr(model, "hf_device_map", None) or {}
    if not device.startswith("cpu"):
        _refuse_away(placed, "the GPUs are too small")


def _refuse_away(placed: Mapping[str, Any], what: str) -> None:
    away = [name for name, where in placed.items() if str(where) in AWAY]
    if away:
        raise UsageError(
            f"{what}: {len(away)} modules (e.g. {away[0]!r}) would stand on {placed[away[0]]}, where they get no gradients; use"
            " more GPUs, a quantized base (QLORA), or sharding fsdp2"
        )
