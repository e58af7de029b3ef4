"""Which layers of a model get the lean arithmetic of `quantkit.training.frozen_linear`, and does it give what PEFT gives?

The `forward` of a layer is replaced for as long as training runs; parameters, names and files stay PEFT's. One layer of each
kind (classes of adapter and base, data types) is tried on a few random rows against PEFT's own forward and backward pass:
a new version of PEFT or of a quantization library that computes something else is noticed, not trusted. Layer classes of our
own, the alternative, would have to be attached, saved, merged and detected beside PEFT's.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quantkit.backends.bitsandbytes import state_4bit
from quantkit.backends.unpacked import UnpackedLinear
from quantkit.console import say
from quantkit.layers import unwrapped
from quantkit.training.frozen_linear import Dora, Frozen, Lora, Site, Vera, frozen_weight
from quantkit.training.heap import give_back
from quantkit.training.sharding import whole_modules

TOLERANCE = 0.03
"""Relative L2 difference from PEFT that is rounding: bitsandbytes' backward pass rounds weights to the data type they were
loaded in, and so does bfloat16 arithmetic, to 2⁻⁸; a wrong term is off by tenths."""
ROWS = 8
ROWS_SQUARED = 256
"""Rows of a weight that are in float64 at once."""

Forward = Callable[..., Tensor]


@contextmanager
def fused_adapters(model: Any, *, arithmetic: str = "float32", wanted: bool = True, notice: bool = True) -> Iterator[int]:
    """Let the layers that can compute leanly within; yields how many adapters do. With `notice`, say which cannot, and why.

    `arithmetic` is that of the run (`quantkit.training.precision`); bfloat16 means autocast.
    """
    replaced: list[Any] = []
    adapters, kept, verdicts = 0, Counter[str](), dict[Any, str]()
    for module in whole_modules(model) if wanted else ():
        adapted = _is_adapter(module)
        if not adapted and not _is_quantized_alone(module):
            continue
        reason = _obstacle(module)
        if not reason:
            forward, kind = _forward_of(module), _kind(module)
            if kind not in verdicts:
                verdicts[kind] = _difference(module, forward, half=arithmetic == "bfloat16")
            reason = verdicts[kind]
        if reason:
            kept[reason] += adapted
            continue
        module.forward = forward
        replaced.append(module)
        adapters += adapted
    if notice and kept.total():
        reasons = "; ".join(f"{count} for {reason}" for reason, count in kept.items() if count)
        say(f"fused_adapters is off for {kept.total()} of {adapters + kept.total()} adapters: {reasons}")
    give_back()  # dequantized weights of trials and of DoRA's norms, freed between what is kept of them
    try:
        yield adapters
    finally:
        for module in replaced:
            del module.forward


def _is_adapter(module: Any) -> bool:
    """Whether a module is one of PEFT's tuned layers (any kind, on any layer)."""
    return hasattr(module, "base_layer") and hasattr(module, "active_adapters")


def _is_quantized_alone(module: Any) -> bool:
    """Whether a module is a frozen bitsandbytes layer: its own backward pass keeps or rounds what ours does not.

    Those inside of adapters count too; their `forward` is then called without gradients.
    """
    return _is_bitsandbytes(module) and not any(item.requires_grad for item in module.parameters())


def _is_bitsandbytes(module: Any) -> bool:
    quantized = hasattr(module, "weight") and state_4bit(module) is not None
    return type(module).__module__.startswith("bitsandbytes.") and (quantized or hasattr(module, "init_8bit_state"))


def _obstacle(module: Any) -> str:
    """Return why a layer must stay as it is, "" where nothing speaks against it."""
    layer = unwrapped(module)
    if "forward" in vars(module) or "forward" in vars(layer):
        return "a forward pass of another library (device_map)"
    if any(item.requires_grad for item in layer.parameters()):
        return "a base that is trained too"
    if not (_is_bitsandbytes(layer) or (type(layer) in (nn.Linear, UnpackedLinear) and _plain(layer.weight))):
        return f"a base of type {type(layer).__name__}"
    return _adapter_obstacle(module, layer) if _is_adapter(module) else ""


def _adapter_obstacle(module: Any, layer: Any) -> str:
    if module.base_layer is not layer or len(module.active_adapters) != 1:
        return "several adapters on one layer"
    (name,) = module.active_adapters
    if hasattr(module, "vera_lambda_b"):
        dropout, trained, plain = module.vera_dropout, [module.vera_lambda_b[name], module.vera_lambda_d[name]], True
    elif name in getattr(module, "lora_A", {}):
        a, b, dropout = module.lora_A[name], module.lora_B[name], module.lora_dropout
        variant = type(module.lora_variant.get(name)).__name__
        trained = [a.weight, b.weight]
        plain = variant in ("NoneType", "DoraLinearVariant") and a.bias is b.bias is None and type(a) is nn.Linear
    else:
        dropout, trained, plain = {}, [], False
    if any(_hooked(part) for part in module.modules() if part is not module and part is not layer):
        return "hooks on an adapter's parts"
    if not plain:
        return f"adapters other than LoRA, DoRA and VeRA on a {type(layer).__name__}"
    if not isinstance(dropout[name], nn.Identity) and dropout[name].p > 0:
        return "dropout"
    return "" if all(_plain(item) and item.requires_grad for item in trained) else "adapters that are frozen or sharded"


def _hooked(module: Any) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def _plain(tensor: Any) -> bool:
    return type(tensor) is nn.Parameter and tensor.is_floating_point()


def _forward_of(module: Any) -> Forward:
    """Return the lean `forward` of a layer; a call that asks for more (adapters off, other data types) gets the old one."""
    own: Forward = module.forward
    layer = unwrapped(module)
    if layer is module:
        alone, site = _apply(Frozen), Site(layer, own)

        def frozen(x: Tensor) -> Tensor:
            return alone(x, site) if torch.is_grad_enabled() and x.requires_grad else own(x)

        return frozen
    (name,) = module.active_adapters
    product = _product_of(module, layer, name)
    holder = module.vera_lambda_b[name] if hasattr(module, "vera_lambda_b") else module.lora_A[name].weight
    dtype = holder.dtype

    def adapted(x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        plain = not arguments and not named and module.active_adapters == [name]
        same = x.dtype == dtype or torch.is_autocast_enabled(x.device.type)
        if plain and same and torch.is_grad_enabled() and not module.disable_adapters and not module.merged:
            return product(x)
        return own(x, *arguments, **named)

    return adapted


def _product_of(module: Any, layer: Any, name: str) -> Callable[[Tensor], Tensor]:
    lora, dora, vera = _apply(Lora), _apply(Dora), _apply(Vera)
    if hasattr(module, "vera_lambda_b"):
        site = Site(layer, layer)

        def product(x: Tensor) -> Tensor:
            a = module.vera_A[name][:, : layer.in_features].to(x.device)
            b = module.vera_B[name][: layer.out_features].to(x.device)
            return vera(x, site, module.vera_lambda_b[name], module.vera_lambda_d[name], a, b)

        return product
    a, b, scale = module.lora_A[name], module.lora_B[name], float(module.scaling[name])
    if name not in module.lora_variant:
        site = Site(layer, layer, scale)
        return lambda x: lora(x, site, a.weight, b.weight)
    weight = frozen_weight(layer, a.weight.dtype)
    parts = [weight[at : at + ROWS_SQUARED].double().square().sum(1) for at in range(0, len(weight), ROWS_SQUARED)]
    squares = torch.cat(parts).to(a.weight.dtype)
    rounds = hasattr(layer, "init_8bit_state") or getattr(getattr(layer, "facts", None), "activations_bits", None) is not None
    site, magnitude = Site(layer, layer, scale, squares, rounds), module.lora_magnitude_vector[name]
    return lambda x: dora(x, site, a.weight, b.weight, magnitude.weight)


def _apply(function: Any) -> Forward:
    return lambda *arguments: torch.as_tensor(function.apply(*arguments))


def _kind(module: Any) -> tuple[Any, ...]:
    """Return what layers have in common that one trial speaks for."""
    layer = unwrapped(module)
    variant = tuple(type(item) for item in getattr(module, "lora_variant", {}).values())
    facts, types = getattr(layer, "facts", None), tuple(item.dtype for item in module.parameters())
    return type(module), variant, type(layer), facts, types, layer.bias is None


def _difference(module: Any, forward: Forward, *, half: bool) -> str:
    """Return "" if a layer's outputs and gradients on random rows are PEFT's, else by how much they differ.

    Adapters start at no change, which hides most mistakes, so the trial is made with others in their place.
    """
    generator, layer = torch.Generator().manual_seed(0), unwrapped(module)
    trained = {name: item.detach() for name, item in module.named_parameters() if item.requires_grad}
    dtype = next((item.dtype for item in trained.values()), torch.float32)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(layer.weight.device, dtype)

    x, outer = noise(ROWS, layer.in_features), noise(ROWS, layer.out_features)
    moved = {name: (item + 0.1 * noise(*item.shape)).requires_grad_() for name, item in trained.items()}
    try:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            theirs = _outputs_and_gradients(module, moved, x, outer)
            module.forward = forward
            ours = _outputs_and_gradients(module, moved, x, outer)
    except Exception as error:  # whatever a library's code does not expect
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    finally:
        vars(module).pop("forward", None)
    pairs = zip(theirs, ours, strict=True)
    largest = max(float((left - right).norm() / left.norm().clamp_min(1e-30)) for left, right in pairs)
    return "" if largest <= TOLERANCE else f"a result other than PEFT's (relative difference {largest:.1e})"


def _outputs_and_gradients(module: Any, trained: dict[str, Tensor], x: Tensor, outer: Tensor) -> list[Tensor]:
    with torch.enable_grad():
        inputs = x.clone().requires_grad_()
        outputs = torch.func.functional_call(module, trained, (inputs,))
        gradients = torch.autograd.grad(outputs, [inputs, *trained.values()], outer.to(outputs.dtype))
    return [item.double() for item in (outputs.detach(), *gradients)]
