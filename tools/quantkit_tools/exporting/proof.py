"""When is an export the same model as its source? When both give the same logits on fixed token ids, both having been loaded.

An export that is called exact must give them bit for bit; one that is called lossy may move them, within a limit.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit import console
from quantkit.errors import UsageError, VerificationError
from quantkit.exporting import Answer
from quantkit.fidelity import Fidelity, compare_logits
from quantkit.memory import free_bytes

if TYPE_CHECKING:
    from torch import Tensor

ROWS, LENGTH = 4, 64
"""Token ids that source and result are run on: rows, and ids in each."""
ROOM = {False: 2.5, True: 10.0}
"""Free memory wanted, as a multiple of the source's files: 16-bit weights double in float32, 4-bit ones grow eightfold."""
LARGEST_MEAN_KL = 0.05
"""Mean KL divergence in nats from the source above which even an export that is called lossy is not kept."""


def probe_rows(model: Any) -> list[list[int]]:
    """Return the fixed token ids that models are compared on: spread over the vocabulary, the same in every run."""
    size = int(model.get_input_embeddings().weight.shape[0])
    return [[(row * 7919 + column * 104729) % size for column in range(1, LENGTH + 1)] for row in range(ROWS)]


def checked_fidelity(answer: Answer, reference: "Tensor", logits: "Tensor") -> Fidelity:
    """Return how far the result's logits are from the source's.

    Raises:
        VerificationError: farther than the answer allows.
    """
    fidelity = compare_logits(reference, logits)
    if answer.outcome == "exact" and fidelity.max_abs_logit_difference > 0:
        raise VerificationError(f"the export was to be exact and is not: {fidelity}; nothing was written")
    if fidelity.mean_kl > LARGEST_MEAN_KL:
        raise VerificationError(f"the export is too far from its source: {fidelity}; nothing was written")
    return fidelity


def require_memory(source: Path, *, quantized: bool) -> None:
    """Raise `UsageError` where the memory that is free does not hold source and result in turn."""
    needed = int(size_of(source) * ROOM[quantized])
    if (free := free_bytes("cpu")) < needed:
        raise UsageError(
            f"{source}: comparing source and result needs {console.format_bytes(needed)} of memory,"
            f" {console.format_bytes(free)} are free; nothing is exported that was not compared"
        )


def size_of(source: Path) -> int:
    """Return the bytes of a folder's weight files."""
    return sum(path.stat().st_size for path in source.glob("*.safetensors"))
