"""What is kept of a run whose memory runs out in the middle of a step?

The step that does not fit has changed nothing yet: weights, optimizer and random numbers are those of the last finished
step, and those are saved as a checkpoint that a run with smaller batches or with recomputing goes on from. Ending with the
library's error, as a training loop does by itself, loses every step since the last checkpoint. Only where the optimizer was
at work are weights half changed, and then nothing is saved.
"""

import random
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError

ALLOCATOR = "can't allocate memory"
"""What torch's CPU allocator says in a plain `RuntimeError`."""
ADVICE = (
    "Halve per_device_train_batch_size and double gradient_accumulation_steps, or set recompute to selective or full: the"
    " losses stay the same, and a run that resumes may change them"
)


class OutOfMemoryError(QuantkitError):
    """Memory ran out while training; the text says at which step, what was saved, and what needs less."""

    def __init__(self, found: str, checkpoint: Path | None = None, *, fits: str = ADVICE) -> None:
        goes_on = " Go on with resume_from_checkpoint=true." if checkpoint else ""
        super().__init__(f"{found}. {fits}.{goes_on}")
        self.found = found
        """Where memory ran out, and what was saved."""
        self.checkpoint = checkpoint
        """The state after the last finished step, or the newest older one; None where there is none."""


def shortage_of(error: BaseException) -> str | None:
    """Return the first line of an error that says memory ran out, on a GPU or not; None for any other error.

    >>> shortage_of(MemoryError()), shortage_of(ValueError("memory"))
    ('MemoryError', None)
    """
    import torch

    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and ALLOCATOR in text):
        return text or type(error).__name__
    return None


def random_states() -> tuple[Any, ...]:
    """Return the states of all generators that a step draws from; `restore_random_states` is the inverse."""
    import numpy as np
    import torch

    cuda: Any = torch.cuda
    gpus = cuda.get_rng_state_all() if cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), gpus


def restore_random_states(states: tuple[Any, ...]) -> None:
    """Set all generators back."""
    import numpy as np
    import torch

    own, arrays, cpu, gpus = states
    random.setstate(own)
    np.random.set_state(arrays)
    torch.set_rng_state(cpu)
    if gpus is not None:
        torch.cuda.set_rng_state_all(gpus)


def release(model: Any) -> None:
    """Give back what an unfinished step held; call it when its error is no longer being handled, for that holds tensors."""
    import gc

    import torch

    model.zero_grad(set_to_none=True)
    gc.collect()
    cuda: Any = torch.cuda
    if cuda.is_initialized():
        cuda.empty_cache()
