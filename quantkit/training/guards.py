"""Does the training reach every weight it is meant to reach?

A layer whose backward is broken (bitsandbytes repacks NF4 weights in eval mode on a CPU: half of the adapters then get no
gradient) trains on silently with a falling loss. Looking at the gradients once, after the first backward pass, costs
nothing; looking at the loss curve, the usual check, shows nothing.
"""

from collections.abc import Sequence
from typing import Any

from quantkit.adapters import is_up_projection
from quantkit.errors import VerificationError


def gradient_faults(model: Any) -> list[str]:
    """Return what is wrong with the gradients of the last backward pass, a phrase per fault; empty when all is well.

    Each trainable parameter needs a finite gradient, and each that starts at zero one that is not zero.
    """
    import torch

    missing, broken, dead = [], [], []
    for name, parameter in _trainable(model):
        if parameter.grad is None:
            missing.append(name)
        elif not bool(torch.isfinite(parameter.grad).all()):
            broken.append(name)
        elif is_up_projection(name) and not bool(parameter.grad.any()):
            dead.append(name)
    return [
        f"{_some(names)} {what}"
        for names, what in ((missing, "got no gradient"), (broken, "got a non-finite one"), (dead, "got one of zeros only"))
        if names
    ]


def check_gradients(model: Any, *, where: str = "the first backward pass") -> None:
    """Check the gradients of the last backward pass.

    Raises:
        VerificationError: names the parameters at fault.
    """
    if faults := gradient_faults(model):
        raise VerificationError(
            f"after {where}, of {len(_trainable(model))} trainable parameters {'; '.join(faults)}."
            " The model's layers do not pass gradients on; it was not trained"
        )


def check_learned(model: Any, *, steps: int) -> None:
    """Check that the trained weights are finite and that the adapters are no longer all zero.

    Raises:
        VerificationError: names the parameters at fault.
    """
    import torch

    weights = _trainable(model)
    broken = [name for name, parameter in weights if not bool(torch.isfinite(parameter).all())]
    if broken:
        raise VerificationError(f"after {steps} steps {_some(broken)} hold non-finite values; nothing is saved")
    starting = [(name, parameter) for name, parameter in weights if is_up_projection(name)]
    if starting and not any(bool(parameter.any()) for _, parameter in starting):
        raise VerificationError(
            f"after {steps} steps all {len(starting)} adapters are still zero: the model is the base."
            " Train more steps than warm-up has, or raise learning_rate"
        )


def _trainable(model: Any) -> list[tuple[str, Any]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} ({', '.join(names[:most])}{more})"
