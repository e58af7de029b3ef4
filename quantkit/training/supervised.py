"""How is the loss taken without scoring tokens that carry none?

With a vocabulary of 49,152 the output head is half of a small model's step, and on most data nine positions in ten are
prompt. A hook before the head keeps only the hidden states that predict a supervised token; everything the model does to
its logits (scaling, soft-capping) stays its own. `logits_to_keep`, the alternative, keeps whole columns of a batch and
so gains little when responses start at different places.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from quantkit.data.encode import IGNORED
from quantkit.errors import QuantkitError
from quantkit.layers import bare_model


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


@contextmanager
def supervised_positions_only(head: Any, labels: Any) -> Iterator[None]:
    """Let `head` see only hidden states [1, supervised, hidden] of positions that predict a supervised token."""
    chosen = labels[:, 1:] != IGNORED

    def keep(_module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = arguments
        return (hidden[:, :-1][chosen].unsqueeze(0), *rest)

    handle = head.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def supervised_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """Return the summed cross entropy of the kept positions by the number of supervised tokens of the whole step.

    `num_items_in_batch` counts them over all rows of an accumulated step (None: over these rows), so that accumulation
    weighs every token the same.

    Raises:
        QuantkitError: the model did not pass its hidden states through the head once, as they came.
    """
    import torch

    targets = labels[:, 1:][labels[:, 1:] != IGNORED]
    logits = outputs.logits
    if tuple(logits.shape[:2]) != (1, len(targets)):
        raise QuantkitError(
            f"the output head gave logits of shape {tuple(logits.shape)} for {len(targets)} supervised tokens;"
            " this architecture calls its head in an unusual way, please report it with the model's name"
        )
    total = torch.nn.functional.cross_entropy(logits[0].float(), targets, reduction="sum")
    return total / (max(len(targets), 1) if num_items_in_batch is None else num_items_in_batch)
