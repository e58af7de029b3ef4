"""What is the loss on rows the run does not train on, without disturbing the run?"""

from collections.abc import Sequence
from typing import Any

from quantkit.training.modes import undisturbed
from quantkit.training.supervised import output_head, supervised_loss, supervised_positions_only, supervised_tokens


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
