"""In which data type does a training step compute, and in which does it keep what it trains?

Trained weights are float32, always: AdamW's steps are far below bfloat16's resolution of 2⁻⁸ and would be rounded away.
Matrix products run in the faster of bfloat16 (by autocast) and float32, found by timing one. A table of processors is the
alternative; it is wrong about CPUs that have bfloat16 units but no AMX (4 times faster) and right about those without (half
as fast). After training each parameter gets back the data type it came with: frozen ones exactly, trained ones rounded once.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from quantkit.errors import UsageError
from quantkit.training.heap import give_back

if TYPE_CHECKING:
    from quantkit.config import RunConfig

REPEATS = 5
LOOKED_AT = 2**20
"""Numbers of a weight that are looked at together."""


def arithmetic_dtype(model: Any, config: "RunConfig", device: str) -> str:
    """Return `bfloat16` or `float32`: what the user asked for, else the faster one on this device.

    Float32 needs the frozen weights in float32; where that would take more than half of the memory that is free, it is
    bfloat16 all the same.

    Raises:
        UsageError: float16 was asked for, whose range needs a loss scaling that would hide non-finite gradients.
    """
    if config.compute_dtype == "float16":
        raise UsageError("compute_dtype is float16; training computes in bfloat16 or float32, so ask for one of them or auto")
    if config.compute_dtype != "auto":
        return config.compute_dtype
    dtype = faster_dtype(device)
    if dtype == "float32" and device == "cpu":
        import psutil

        extra = sum(4 * item.numel() - item.nbytes for item in _plain_parameters(model) if not item.requires_grad)
        if extra > psutil.virtual_memory().available / 2:
            return "bfloat16"
    return dtype


def faster_dtype(device: str) -> str:
    """Return which of `bfloat16` and `float32` multiplies matrices faster on this device; a few hundredths of a second."""
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if kind != "cpu":
        return "float32"
    return min(("bfloat16", "float32"), key=lambda name: _product_s(getattr(torch, name)))


@contextmanager
def training_dtypes(model: Any, arithmetic: str) -> Iterator[None]:
    """Hold trainable parameters in float32, and frozen ones in what the arithmetic reads; undo both at the end.

    Float32 arithmetic holds frozen parameters in float32. Bfloat16 arithmetic holds weights of linear layers and embeddings
    in bfloat16 where that changes no value (they were stored so), as autocast would round them at each use. What embeddings
    give stays float32, and with it the sum that blocks add to. Quantized weights are left alone; layers that dequantize to a
    `compute_dtype` of their own (bitsandbytes) do so in the arithmetic's: left to choose from their first input, they would be
    asked for weights before it.

    What was freed before either change, and by it, goes back to the system: copies are too large for gaps in a heap, and would
    come on top.
    """
    import torch

    give_back()
    before, hooks = [], []
    for parameter in _plain_parameters(model):
        if parameter.requires_grad or arithmetic == "float32":
            before.append((parameter, parameter.dtype))
            parameter.data = parameter.data.to(torch.float32)
    for module in _stored_in_half(model) if arithmetic == "bfloat16" else []:
        if module.weight.dtype is torch.float32:  # a tied weight is met twice
            before.append((module.weight, torch.float32))
            module.weight.data = module.weight.data.to(torch.bfloat16)
        if isinstance(module, torch.nn.Embedding):
            hooks.append(module.register_forward_hook(lambda _module, _inputs, output: output.float()))
    choosers = [module for module in model.modules() if hasattr(module, "compute_type_is_set")]
    give_back()
    chosen = [(module, module.compute_dtype, module.compute_type_is_set) for module in choosers]
    for module in choosers:
        module.compute_dtype, module.compute_type_is_set = getattr(torch, arithmetic), True
    try:
        yield
    finally:
        for parameter, _ in before:
            parameter.grad = None
        give_back()
        for parameter, dtype in before:
            parameter.data = parameter.data.to(dtype)
        for hook in hooks:
            hook.remove()
        for module, dtype, is_set in chosen:
            module.compute_dtype, module.compute_type_is_set = dtype, is_set


def _stored_in_half(model: Any) -> list[Any]:
    """Return the linear layers and embeddings whose frozen float32 weights are bfloat16 numbers."""
    import torch

    frozen = {id(item): item for item in _plain_parameters(model) if not item.requires_grad and item.dtype is torch.float32}
    modules = [item for item in model.modules() if isinstance(item, torch.nn.Linear | torch.nn.Embedding)]
    weights = {key: frozen[key] for key in dict.fromkeys(id(module.weight) for module in modules) if key in frozen}
    half = {key for key, weight in weights.items() if _holds_half(weight.data)}
    return [module for module in modules if id(module.weight) in half]


def _holds_half(weight: Any) -> bool:
    """Whether all of a float32 matrix's numbers are bfloat16 ones; a few rows at a time, so that no copy of it is made."""
    import torch

    rows = max(LOOKED_AT // max(weight[0].numel(), 1), 1)
    return all(torch.equal(part.to(torch.bfloat16).float(), part) for part in weight.split(rows))


def _plain_parameters(model: Any) -> list[Any]:
    """Return the floating-point parameters that are no quantized weights (those are of subclasses of `Parameter`)."""
    import torch

    return [item for item in model.parameters() if type(item) is torch.nn.Parameter and item.is_floating_point()]


@cache
def _product_s(dtype: Any) -> float:
    """Return the seconds of a product, timed once per process: its forecast and its training must choose alike."""
    import torch

    left, right = torch.ones(512, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        torch.nn.functional.linear(left, right)
        times.append(time.perf_counter() - start)
    return min(times[1:])
