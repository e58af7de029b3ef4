"""How are decoder blocks, or their MLPs alone, computed again in the backward pass, to hold less memory?

A block's `forward` is put through torch's checkpoint: of a whole block its input is kept, of one whose MLP alone is computed
again what its attention keeps. The inner activations of MLPs are most of what is kept, and attention, which is dear for its
size, is not repeated then. The MLP is found by its width: the smallest module that owns the widest linear layers outside of
attention; names (`mlp`, `feed_forward`), the alternative, differ between families. transformers' own switch, another one, knows
whole models only. Which blocks, `quantkit.recompute` says; how many of them, where nobody says, `quantkit.forecasting.choice`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from quantkit.console import say
from quantkit.recompute import AUTO, Recompute, mlp_owner

if TYPE_CHECKING:
    from quantkit.config import RunConfig


def recompute_of(config: "RunConfig", recorded: str | None = None) -> str:
    """Return what is computed again; `gradient_checkpointing` asks for full.

    `auto` is what the checkpoint that the run goes on from has `recorded`, and none where there is no record.
    """
    if config.gradient_checkpointing:
        return "full"
    return (recorded or "none") if config.recompute == AUTO else config.recompute


def check_recompute(model: Any, config: "RunConfig") -> None:
    """Check that a model, of which the sizes alone may be there, has as many blocks as settings name.

    Raises:
        UsageError: it has fewer.
    """
    from quantkit.layers import bare_model

    Recompute.of(recompute_of(config), len(_blocks(bare_model(model))[1]))


@contextmanager
def recomputed(model: Any, wanted: str, *, notice: bool = True) -> Iterator[str]:
    """Let a model compute blocks again in the backward pass within; yields which, written as `wanted` is.

    With `notice`, say what cannot be.

    Raises:
        UsageError: more blocks are named than the model has.
    """
    parts, actual = _parts(model, wanted, notice=notice)
    before = [(part, vars(part).get("forward")) for part in parts]
    for part in parts:
        part.forward = _again(part)
    try:
        yield actual
    finally:
        for part, own in before:
            if own is None:
                del part.forward
            else:
                part.forward = own


def mlps(model: Any) -> list[Any]:
    """Return the MLP of each decoder block, None of a block that has no module for it alone."""
    from quantkit.layers import bare_model, features, linear_layers

    inner = bare_model(model)
    prefix, blocks = _blocks(inner)
    widths = {name: max(features(layer)) for name, layer in linear_layers(inner).items()}
    owners = [mlp_owner(widths, f"{prefix}.{number}") for number in range(len(blocks))]
    return [owner and inner.get_submodule(owner) for owner in owners]


def _parts(model: Any, wanted: str, *, notice: bool) -> tuple[list[Any], str]:
    """Return the modules to compute again, and what that is."""
    from quantkit.layers import bare_model

    if wanted in ("none", AUTO):
        return [], "none"
    blocks = _blocks(bare_model(model))[1]
    asked = Recompute.of(wanted, len(blocks))
    if not blocks:
        if notice:
            say(f"recompute {wanted} is off for this model: it has no list of decoder blocks")
        return [], "none"
    chosen = mlps(model)[asked.full : asked.full + asked.selective] if asked.selective else []
    if None in chosen:
        if notice:
            say(
                "recompute selective is off for this model: its decoder blocks have no module for the MLP alone; full works,"
                " also of some blocks (full:N)"
            )
        chosen = []
    return [*blocks[: asked.full], *chosen], Recompute(asked.full, len(chosen)).text(len(blocks))


def _blocks(inner: Any) -> tuple[str, Any]:
    from quantkit.errors import UsageError
    from quantkit.numerics.capture import find_blocks

    try:
        return find_blocks(inner)
    except UsageError:
        return "", []


def _again(module: Any) -> Any:
    from torch import is_grad_enabled
    from torch.utils.checkpoint import checkpoint

    own = module.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        if not (module.training and is_grad_enabled()):
            return own(*arguments, **named)
        return checkpoint(own, *arguments, use_reentrant=False, **named)

    return forward
