"""What is the loss on rows the run does not train on, without disturbing the run?"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from quantkit.training.supervised import output_head, supervised_loss, supervised_positions_only, supervised_tokens


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Put a model into eval mode within; its modes are as before afterwards.

    Linear layers stay in training mode: bitsandbytes repacks 4-bit weights in an eval-mode forward pass on a CPU, and
    gradients no longer pass through them.
    """
    import torch

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for module, _ in modes:
        if isinstance(module, torch.nn.Linear):
            module.training = True
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def mean_loss(
    model: Any, rows: Sequence[Any], collate: Any, *, batch_size: int, device: str, dtype: str, tail: Any = None
) -> float:
    """Return the mean loss per supervised token of these rows, in nats; the model's modes are as before.

    `tail` (see `quantkit.training.tiles`) lets the loss of many positions be taken in tiles.
    """
    import torch

    head = output_head(model)
    half = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype == "bfloat16")
    total, count = 0.0, 0
    with undisturbed(model), torch.no_grad(), half:
        for start in range(0, len(rows), batch_size):
            batch = {key: value.to(device) for key, value in collate(rows[start : start + batch_size]).items()}
            labels = batch["labels"]
            supervised = int(supervised_tokens(labels))
            if head is None:
                loss = model(**batch).loss
            else:
                del batch["labels"]
                with supervised_positions_only(head, labels, tail) as kept:
                    loss = supervised_loss(model(**batch), labels, kept=kept)
            total += float(loss) * supervised
            count += supervised
    return total / max(count, 1)
