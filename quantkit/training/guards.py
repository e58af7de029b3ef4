"""Does the training reach every weight it is meant to reach?

A layer whose backward is broken (bitsandbytes repacks NF4 weights in eval mode on a CPU: half of the adapters then get no
gradient) trains on silently with a falling loss. Looking at the gradients once, after the first backward pass, costs
nothing; looking at the loss curve, the usual check, shows nothing.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from quantkit.adapters import is_up_projection
from quantkit.errors import QuantkitError, VerificationError
from quantkit.layout import counted


class NotFiniteError(QuantkitError):
    """A number of a step is not finite; `state_is_good` says whether weights and optimizer are those before it, and finite."""

    def __init__(self, found: str, *, state_is_good: bool) -> None:
        super().__init__(found)
        self.state_is_good = state_is_good


def gradient_faults(model: Any) -> list[str]:
    """Return what is wrong with the gradients of the last backward pass, a phrase per fault; empty when all is well.

    Each trainable parameter needs a finite gradient, and each that starts at zero one that is not zero.
    """
    missing, broken, dead = [], [], []
    for name, parameter in _trainable(model):
        if parameter.grad is None:
            missing.append(name)
        elif not _finite(parameter.grad):
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
    weights = _trainable(model)
    broken = [name for name, parameter in weights if not _finite(parameter)]
    if broken:
        raise VerificationError(f"after {counted(steps, 'step')} {_some(broken)} hold non-finite values; nothing is saved")
    starting = [(name, parameter) for name, parameter in weights if is_up_projection(name)]
    if starting and not any(bool(parameter.any()) for _, parameter in starting):
        raise VerificationError(
            f"after {counted(steps, 'step')} all {len(starting)} adapters are still zero: the model is the base."
            " Train more steps than warm-up has, or raise learning_rate"
        )


def state_faults(model: Any, optimizer: Any = None) -> list[str]:
    """Return which trained weights and states of their optimizer are not finite, a phrase per fault; empty when all are.

    One norm over everything answers in nearly all cases; names are looked for only when it is not finite. An infinite second
    moment is no fault of a weight yet: Adam then never moves that weight again.
    """
    states = getattr(optimizer, "state", {})
    weights = [item for group in getattr(optimizer, "param_groups", ()) for item in group["params"]]
    trained = weights or [item for item in model.parameters() if item.requires_grad]
    if _norm_is_finite([*trained, *(part for state in states.values() for part in _tensors(state))]):
        return []
    named = _trainable(model)
    broken = [name for name, weight in named if not _finite(weight)]
    stuck = [name for name, weight in named if not all(map(_finite, _tensors(states.get(weight, {}))))]
    return [f"{what} {_some(names)}" for names, what in ((broken, "weights"), (stuck, "the optimizer's states of")) if names]


def frozen_faults(model: Any) -> list[str]:
    """Return the same of weights that are not trained; 4-bit codes may be stored as floats, of any value."""
    codes = {f"{name}.weight" for name, module in model.named_modules() if getattr(module, "quant_state", None) is not None}
    frozen = [(name, item) for name, item in model.named_parameters() if not item.requires_grad and name not in codes]
    names = [name for name, item in frozen if not _finite(item)]
    return [f"frozen weights {_some(names)}"] if names else []


def _norm_is_finite(tensors: Sequence[Any]) -> bool:
    import torch

    parts = [part for tensor in tensors for part in _parts(tensor)]
    return math.isfinite(float(torch.nn.utils.get_total_norm(parts)))


def _finite(tensor: Any) -> bool:
    import torch

    return all(bool(torch.isfinite(part).all()) for part in _parts(tensor))


def _tensors(state: Any) -> Iterator[Any]:
    """Yield the tensors of a parameter's optimizer state, at whatever depth, but no counts of steps."""
    import torch

    for name, value in state.items():
        if name == "step":
            continue
        if torch.is_tensor(value):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value)


def _parts(tensor: Any) -> list[Any]:
    """Return the floating-point tensors that a tensor is, or is made of here (sharded, or quantized by torchao).

    Not 8-bit ones, for which torch has no arithmetic.
    """
    import torch

    if type(tensor) in (torch.Tensor, torch.nn.Parameter):
        return [tensor.detach()] if tensor.is_floating_point() and tensor.element_size() > 1 else []
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if not is_traceable_wrapper_subclass(tensor):
        return _parts(tensor.detach().as_subclass(torch.Tensor))
    inner = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return [part for item in inner if torch.is_tensor(item) for part in _parts(item)]


def _trainable(model: Any) -> list[tuple[str, Any]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} ({', '.join(names[:most])}{more})"
