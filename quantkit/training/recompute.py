"""What of a forward pass is computed again in the backward pass, to hold less memory?

`full` is transformers' checkpointing: each decoder block is computed twice. `selective` computes only MLPs twice: their
inner activations are most of what is kept, and the attention, which is dear for its size, is not repeated. The MLP is found by
its width: in each block the smallest module that owns the widest linear layers. Names (`mlp`, `feed_forward`), the
alternative, differ between families.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from quantkit.console import say

if TYPE_CHECKING:
    from quantkit.config import RunConfig


def recompute_of(config: "RunConfig") -> str:
    """Return `none`, `selective` or `full`; `gradient_checkpointing` asks for full."""
    return "full" if config.gradient_checkpointing else config.recompute


@contextmanager
def mlps_recomputed(model: Any, *, wanted: bool = True, notice: bool = True) -> Iterator[int]:
    """Let a model compute its MLPs again in the backward pass within; yields how many. With `notice`, say if none is found."""
    from torch import is_grad_enabled
    from torch.utils.checkpoint import checkpoint

    def again(module: Any) -> Any:
        own = module.forward

        def forward(*arguments: Any, **named: Any) -> Any:
            if not (module.training and is_grad_enabled()):
                return own(*arguments, **named)
            return checkpoint(own, *arguments, use_reentrant=False, **named)

        return forward

    whole = mlps(model) if wanted else []
    found = [module for module in whole if "forward" not in vars(module)]
    if wanted and notice and not found:
        reason = "the forward pass of its MLPs is another library's (device_map)"
        if not whole:
            reason = "its decoder blocks have no module for the MLP alone"
        say(f"recompute selective is off for this model: {reason}; full works")
    for module in found:
        module.forward = again(module)
    try:
        yield len(found)
    finally:
        for module in found:
            del module.forward


def mlps(model: Any) -> list[Any]:
    """Return of each decoder block the smallest module that owns its widest linear layers; none where that is the block."""
    from quantkit.errors import UsageError
    from quantkit.layers import bare_model, features, linear_layers
    from quantkit.numerics.capture import find_blocks

    inner = bare_model(model)
    try:
        prefix, blocks = find_blocks(inner)
    except UsageError:
        return []
    layers, found = linear_layers(inner), []
    for number in range(len(blocks)):
        block = f"{prefix}.{number}"
        sizes = {name: max(features(layer)) for name, layer in layers.items() if name.startswith(f"{block}.")}
        widest = [name for name, size in sizes.items() if size == max(sizes.values())]
        owner = _common_owner(widest)
        if owner.startswith(f"{block}."):
            found.append(inner.get_submodule(owner))
    return found


def _common_owner(names: list[str]) -> str:
    """Return the innermost module that owns all of these.

    >>> _common_owner(["layers.0.mlp.gate", "layers.0.mlp.down"])
    'layers.0.mlp'
    """
    parts = [name.split(".")[:-1] for name in names]
    shared = 0
    while parts and all(len(part) > shared and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return ".".join(parts[0][:shared]) if parts else ""
