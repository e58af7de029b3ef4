"""What is the least a linear layer with a frozen weight and an adapter must compute, and keep for its backward pass?

Composed of single operations, as PEFT composes it, an adapter writes three tensors as large as the layer's output besides the
output itself, and DoRA passes an identity matrix through itself to see its own update. Here the adapter's product is added
into the layer's output in place. Kept are the input and its product with A (DoRA: the output too), no dequantized weight: the
backward pass dequantizes again. (Where products are fast, in bfloat16 on a CPU, dequantizing is a tenth of a step of 550
tokens; keeping every weight would save that for the memory of a base in 16 bit.) The forward pass of the base stays the
layer's own, whatever its library does there. One product for all layers that share an input (q, k, v; gate, up), an
alternative, gained 11 % on q, k, v and nothing on gate, up on a CPU: 2 % of a step, for layers that then know each other.
Importing this module imports torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

SMALL_RANK = 64
"""Rank of VeRA up to which a product of that rank is taken twice rather than kept: a CPU step gains by it at 16 and loses 9 %
at 256."""


_copies: Any = WeakTensorKeyDictionary()
"""Of inputs that are still there: their version, and a copy in autocast's data type."""


@dataclass(frozen=True, slots=True)
class Site:
    """A layer with a frozen weight."""

    layer: Any
    call: Callable[[Tensor], Tensor]
    """The layer's own forward pass."""
    scale: float = 1.0
    """Scale of LoRA's product."""
    squares: Any = None
    """Squared norms [out] of the weight's rows, for DoRA."""
    rounds: bool = False
    """Whether the forward pass rounds its inputs."""


def frozen_weight(layer: Any, dtype: torch.dtype) -> Tensor:
    """Return a layer's weight [out, in] as its forward pass uses it, in a data type; dense weights of it are not copied.

    Quantized ones are dequantized as `quantkit.backends.bitsandbytes.dense_weight` says.
    """
    from quantkit.backends.bitsandbytes import dense_weight, state_4bit

    if state_4bit(layer) is not None or hasattr(layer, "init_8bit_state"):
        return torch.as_tensor(dense_weight(layer, dtype))
    return torch.as_tensor(layer.weight.detach().to(dtype))


def as_computed(x: Tensor) -> Tensor:
    """Return a layer's input in autocast's data type, for the backward pass to compute in it too; siblings share the copy.

    bitsandbytes answers in the data type it is asked in. With float32 gradients the product with the weight took four times
    as long on a CPU with bfloat16 units, for results no nearer to float64 than the forward pass is. A copy for each of q, k, v,
    gate and up, as autocast makes them, would be a tenth of what a block keeps.
    """
    if not torch.is_autocast_enabled(x.device.type):
        return x
    dtype = torch.get_autocast_dtype(x.device.type)
    if x.dtype is dtype:
        return x
    made = _copies.get(x)
    if made is None or made[0] != x._version or made[1].dtype is not dtype:
        made = _copies[x] = x._version, x.to(dtype)
    return torch.as_tensor(made[1])


def _without_autocast(backward: Callable[..., Any]) -> Any:
    """Make a `backward` of a function that computes in the data types it is given, wherever it is called."""

    def plain(ctx: Any, *outer: Tensor) -> Any:
        with torch.autocast(outer[0].device.type, enabled=False):
            return backward(ctx, *outer)

    plain.__doc__ = backward.__doc__
    return once_differentiable(plain)


class Frozen(Function):
    """The output of a layer without adapter; nothing is kept but the layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: Site) -> Tensor:
        """Return the layer's output [..., out]."""
        ctx.site, ctx.dtype = site, x.dtype
        return site.call(as_computed(x))

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, *outer: Tensor) -> Any:
        """Return the gradient of the input."""
        return (outer[0] @ frozen_weight(ctx.site.layer, outer[0].dtype)).to(ctx.dtype), None


class Lora(Function):
    """x·Wᵀ + bias + scale·(x·Aᵀ)·Bᵀ for A `[r, in]` and B `[out, r]`; arXiv:2106.09685."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: Site, a: Tensor, b: Tensor) -> Tensor:
        """Return the output [..., out] in the data type that the layer gives."""
        ctx.dtype, x = x.dtype, as_computed(x)
        outputs = site.call(x)
        with torch.autocast(x.device.type, enabled=False):
            flat = outputs.reshape(-1, outputs.shape[-1])
            inner = _add_adapter(flat, x.reshape(-1, x.shape[-1]), a, b, site.scale)
        ctx.site = site
        ctx.save_for_backward(x, inner, a, b)
        return flat.view(outputs.shape)

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, *outer: Tensor) -> Any:
        """Return the gradients of input, A and B."""
        of_x, of_a, of_b = _gradients(ctx, ctx.saved_tensors, outer[0].reshape(-1, outer[0].shape[-1]))
        return of_x, None, of_a, of_b


class Dora(Function):
    """m·(x·Wᵀ + scale·(x·Aᵀ)·Bᵀ) + bias, m being the magnitude `[out]` by the norm of a row of W + scale·B·A.

    The norm gets no gradient (arXiv:2402.09353, section 4.3). It is taken without forming W + scale·B·A: its square is
    ‖w‖² + 2·scale·b·A·w + scale²·b·A·Aᵀ·bᵀ, and `squares` holds ‖w‖², which never changes. A·Wᵀ comes out of the layer's own
    forward pass, to which A's rows are a few tokens more, unless the layer rounds them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: Site, *parameters: Tensor) -> Tensor:
        """Return the output [..., out] in the data type that the layer gives; parameters: A, B, magnitude."""
        ctx.dtype, x = x.dtype, as_computed(x)
        a, b, magnitude = parameters
        tokens, bias, scale = x.reshape(-1, x.shape[-1]), site.layer.bias, site.scale
        outputs = site.call(tokens if site.rounds else torch.cat([tokens, a.to(x.dtype)]))
        with torch.autocast(x.device.type, enabled=False):
            if bias is not None:
                outputs.sub_(bias)
            outputs, cross = outputs[: len(tokens)], outputs[len(tokens) :]
            cross = a @ frozen_weight(site.layer, a.dtype).t() if site.rounds else cross.to(a.dtype)
            norm = (site.squares + (2 * scale * cross.t() + scale**2 * (b @ (a @ a.t()))).mul_(b).sum(1)).clamp_min_(0).sqrt_()
            inner = _add_adapter(outputs, tokens, a, b, scale)
            factor = magnitude / norm
            outputs.mul_(factor)
            if bias is not None:
                outputs.add_(bias)
        ctx.site = site
        ctx.save_for_backward(x, inner, a, b, magnitude, factor, outputs)
        return outputs.view(*x.shape[:-1], -1)

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, *outer: Tensor) -> Any:
        """Return the gradients of input, A, B and magnitude."""
        *lora, magnitude, factor, outputs = ctx.saved_tensors
        flat, bias = outer[0].reshape(-1, outer[0].shape[-1]), ctx.site.layer.bias
        of_magnitude = (flat * outputs).sum(0).to(magnitude.dtype)
        if bias is not None:
            of_magnitude -= bias * flat.sum(0).to(magnitude.dtype)
        of_x, of_a, of_b = _gradients(ctx, lora, flat * factor.to(flat.dtype))
        return of_x, None, of_a, of_b, of_magnitude / magnitude


class Vera(Function):
    """x·Wᵀ + bias + β∘((δ∘(x·Aᵀ))·Bᵀ) for frozen A `[r, in]`, B `[out, r]` and trained δ `[r]`, β `[out]`; arXiv:2310.11454.

    Not even the input is kept: no gradient but its own needs it. Up to `SMALL_RANK`, the product that β scales is not kept
    either: its sum over the tokens is had from a product of rank r.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: Site, *parameters: Tensor) -> Tensor:
        """Return the output [..., out] in the data type that the layer gives; parameters: β, δ, A, B."""
        ctx.dtype, x = x.dtype, as_computed(x)
        beta, delta, a, b = parameters
        outputs = site.call(x)
        with torch.autocast(x.device.type, enabled=False):
            flat, out = outputs.reshape(-1, outputs.shape[-1]), outputs.dtype
            inner = x.reshape(-1, x.shape[-1]).to(out) @ a.to(out).t()
            scaled = None
            if len(delta) <= SMALL_RANK:
                flat.addmm_(inner, (b * beta.unsqueeze(1) * delta).to(out).t())
            else:
                scaled = inner @ (b * delta).to(out).t()
                flat.addcmul_(scaled, beta.to(out))
        ctx.site, ctx.shape = site, x.shape
        ctx.save_for_backward(inner, beta, delta, a, b, scaled)
        return flat.view(outputs.shape)

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, *outer: Tensor) -> Any:
        """Return the gradients of input, β and δ."""
        inner, beta, delta, a, b, scaled = ctx.saved_tensors
        flat = outer[0].reshape(-1, outer[0].shape[-1])
        of_inner = flat @ (b * beta.unsqueeze(1)).to(flat.dtype)
        of_delta = (of_inner * inner).sum(0, dtype=delta.dtype)
        small = scaled is None
        of_beta = ((flat.t() @ inner).to(beta.dtype) * b) @ delta if small else (flat * scaled).sum(0, dtype=beta.dtype)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = flat @ frozen_weight(ctx.site.layer, flat.dtype)
            of_x = of_x.addmm_(of_inner, (a * delta.unsqueeze(1)).to(flat.dtype)).view(ctx.shape).to(ctx.dtype)
        return of_x, None, of_beta, of_delta, None, None


def _add_adapter(outputs: Tensor, tokens: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Add scale·(x·Aᵀ)·Bᵀ to outputs [tokens, out] for inputs [tokens, in]; return x·Aᵀ [tokens, r]."""
    inner = tokens.to(outputs.dtype) @ a.to(outputs.dtype).t()
    outputs.addmm_(inner, b.to(outputs.dtype).t(), alpha=scale)
    return inner


def _gradients(ctx: Any, saved: Sequence[Tensor], flat: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the gradients of input, A and B for a gradient [tokens, out] of x·Wᵀ + scale·(x·Aᵀ)·Bᵀ.

    `saved` is asked of `ctx` once for all: checkpointing gives it no second time.
    """
    x, inner, a, b = saved
    dtype = flat.dtype
    of_inner = (flat @ b.to(dtype)).mul_(ctx.site.scale)
    of_x = None
    if ctx.needs_input_grad[0]:
        of_x = flat @ frozen_weight(ctx.site.layer, dtype)
        of_x = of_x.addmm_(of_inner, a.to(dtype)).view(x.shape).to(ctx.dtype)
    of_a = of_inner.t() @ x.reshape(-1, x.shape[-1]).to(dtype)
    of_b = (flat.t() @ inner).to(b.dtype).mul_(ctx.site.scale)
    return of_x, of_a.to(a.dtype), of_b
