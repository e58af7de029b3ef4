"""How is the loss taken without scoring tokens that carry none?

With a vocabulary of 49,152 the output head is half of a small model's step, and on most data nine positions in ten are
prompt. A hook before the head keeps only the hidden states that predict a supervised token; everything the model does to
its logits (scaling, soft-capping) stays its own. `logits_to_keep`, the alternative, keeps whole columns of a batch and
so gains little when responses start at different places.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantkit.data.encode import IGNORED
from quantkit.errors import QuantkitError
from quantkit.layers import bare_model
from quantkit.training.tiles import full_precision, summed_cross_entropy, tile_rows, tiled_cross_entropy, vocabulary

if TYPE_CHECKING:
    from quantkit.training.tiles import Tail


def supervised_tokens(labels: Any) -> Any:
    """Return how many positions of labels [batch, length] are predicted; the first of a row never is."""
    return (labels[:, 1:] != IGNORED).sum()


def output_head(model: Any) -> Any | None:
    """Return the module that makes logits of hidden states, or None where the model's own loss must be used.

    That is so when the loss is not the plain next-token one (the default where a class names none, as GPT-2's), or routers
    add a loss of their own.
    """
    base = bare_model(model)
    if getattr(base, "loss_type", None) not in ("ForCausalLM", None) or getattr(base.config, "output_router_logits", False):
        return None
    return base.get_output_embeddings()


@dataclass(slots=True)
class Kept:
    """The hidden states [supervised, width] that the head did not get at once, and how the model goes on from its output."""

    head: Any
    tail: "Tail | None" = None
    hidden: Any = None


@contextmanager
def supervised_positions_only(head: Any, labels: Any, tail: "Tail | None" = None) -> Iterator[Kept]:
    """Let `head` see only hidden states [1, supervised, hidden] of positions that predict a supervised token.

    Where these are more than a tile has and the model's `tail` is known, the head sees one of them; `supervised_loss` gets
    the others from what is yielded.
    """
    chosen = labels[:, 1:] != IGNORED
    kept = Kept(head, tail)

    def keep(_module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if kept.hidden is not None:  # a tile of the loss
            return arguments
        hidden, *rest = arguments
        states = hidden[:, :-1][chosen.to(hidden.device)]
        if tail is not None and len(states) > tile_rows(vocabulary(head), states.device.type):
            kept.hidden, states = states, states[:1]
        return (states.unsqueeze(0), *rest)

    handle = head.register_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def supervised_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None, *, kept: Kept | None = None) -> Any:
    """Return the summed cross entropy of supervised positions by the number of supervised tokens of the whole step.

    `num_items_in_batch` counts them over all rows of an accumulated step (None: over these rows), so that accumulation
    weighs every token the same. `kept`, what `supervised_positions_only` yielded, is needed where a `tail` was given.

    Raises:
        QuantkitError: the model did not pass its hidden states through the head once, as they came.
    """
    chosen = labels[:, 1:] != IGNORED
    targets = labels[:, 1:][chosen]
    logits = outputs.logits
    found, tiled = tuple(logits.shape[:2]), kept is not None and kept.hidden is not None
    if found not in {tuple(labels.shape), (1, 1 if tiled else len(targets))}:
        raise QuantkitError(
            f"the output head gave logits of shape {tuple(logits.shape)} for {len(targets)} supervised tokens;"
            " this architecture calls its head in an unusual way, please report it with the model's name and set"
            " loss_positions to all"
        )
    if kept is not None and kept.hidden is not None and kept.tail is not None:
        total = tiled_cross_entropy(kept.head, kept.tail, kept.hidden, targets.to(kept.hidden.device))
    else:
        scored = logits[:, :-1][chosen.to(logits.device)] if found == tuple(labels.shape) else logits[0]
        total = summed_cross_entropy(full_precision(scored), targets.to(scored.device))
    return total.to(labels.device) / (max(len(targets), 1) if num_items_in_batch is None else num_items_in_batch)
