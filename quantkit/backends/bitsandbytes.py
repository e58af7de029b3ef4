"""How are bitsandbytes layers loaded, kept as they were loaded, and turned back into dense ones?

What INT8, BNB4BIT and QLORA share. Three things differ from the libraries' own ways, each for a measured reason:

* **The CPU fast path stays off.** On CPUs with AVX512-BF16, the first forward pass in eval mode without gradients repacks a
  4-bit weight in place (`Linear4bit.forward`). Training afterwards leaves half of the LoRA matrices without gradient, and
  PEFT's merge destroys the model. bitsandbytes can unpack again, but packing rounds the scales to bfloat16, after which
  SmolLM2's weights are off by 0.3 % (relative norm); so nothing is unpacked: repacked weights are refused.
* **LLM.int8 layers keep their scales.** DoRA in PEFT 0.21 replaces an int8 weight by a copy without scales whenever it looks
  at it on the CPU, and the next forward pass fails; the scales are put back before each pass.
* **Dequantizing repeats the forward pass**: 4-bit weights in the layer's compute data type, bit for bit (bitsandbytes'
  `dequantize_4bit` uses the data type the model was loaded in instead); LLM.int8 codes times scale/127 in float32.

LLM.int8 quantizes activations at run time: on CUDA always, on CPU in eval mode only (in training mode 0.50 multiplies
with dequantized weights). Preparing for training freezes the base and changes no data type: PEFT's
`prepare_model_for_kbit_training` would turn head and embeddings into float32, which is no longer what the spec says.
"""

import logging
import sys
from collections.abc import Callable
from functools import cache, partial, wraps
from importlib import import_module
from typing import Any

from quantkit.backends.facts import LayerFacts, dtype_name
from quantkit.errors import VerificationError
from quantkit.plan import QuantizationPlan
from quantkit.spec import DENSE_BITS

BLOCK = 64
"""Weights that share one 4-bit scale; transformers offers no other number, so specs count it as no choice."""
NOISE = ("Failed to load CPU gemm_4bit_forward", "MatMul8bitLt: inputs will be cast")
"""Log lines about nothing the user can act on: an optional kernel package, and a cast that LLM.int8 always does."""


def load_kwargs_4bit(plan: QuantizationPlan) -> dict[str, Any]:
    """Return the `quantization_config` that loads a base in the plan's 4-bit grid; the head is left out by transformers."""
    import torch
    from transformers import BitsAndBytesConfig

    import_lightly()
    quiet()
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=plan.spec.weights_dtype,
            bnb_4bit_use_double_quant=plan.spec.double_quant,
            bnb_4bit_compute_dtype=getattr(torch, plan.compute_dtype),
            bnb_4bit_quant_storage=plan.options.get("quant_storage", "uint8"),  # recipes of before have none
        )
    }


def load_kwargs_8bit(plan: QuantizationPlan) -> dict[str, Any]:
    """Return the `quantization_config` that loads a base as LLM.int8 with the plan's outlier threshold."""
    from transformers import BitsAndBytesConfig

    import_lightly()
    quiet()
    return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=plan.options["llm_int8_threshold"])}


def import_lightly() -> None:
    """Import bitsandbytes without torch's compiler, which it imports for functions its CPU and CUDA code rarely calls.

    They are compiled when one is called first. A sixth of the time until a run's first step went there.
    """
    if "bitsandbytes" in sys.modules:
        return
    import torch

    compile_now: Any = torch.compile

    def compile_later(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return partial(compile_later, **options)
        compiled = cache(lambda: compile_now(function, **options))

        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            return compiled()(*arguments, **named)

        return call

    torch.compile = compile_later  # type: ignore[assignment]
    try:
        import_module("bitsandbytes")
    finally:
        torch.compile = compile_now


def prepare_for_training(model: Any) -> Any:
    """Freeze the base and make sure its weights stay as they were loaded; data types are left alone."""
    keep_layout(model)
    model.requires_grad_(False)
    return model


def compute_in(model: Any, dtype: str) -> Any:
    """Let 4-bit layers compute in this data type, not in the one that their checkpoint names; return the model."""
    import torch

    for module in model.modules():
        if getattr(getattr(module, "weight", None), "quant_state", None) is not None:
            module.compute_dtype, module.compute_type_is_set = getattr(torch, dtype), True
    return model


def keep_layout(model: Any) -> None:
    """Switch off the CPU fast path of every 4-bit layer and guard the scales of every LLM.int8 layer.

    Raises:
        VerificationError: a layer has been repacked already, or its rows have a width that bitsandbytes decodes wrongly here.
    """
    quiet()
    for name, module in model.named_modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            _refuse_repacked(module, name)
            _refuse_misread(module, name)
            module.support_avx512bf16_for_cpu = False
        elif hasattr(module, "init_8bit_state") and _restore_scales not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_restore_scales)


def state_4bit(module: Any) -> Any:
    """Return how a layer's 4-bit weight is quantized, None where it is not.

    The layer knows it as well as the weight: FSDP, having split a weight over processes, gathers plain codes.
    """
    state = getattr(module.weight, "quant_state", None)
    return state if state is not None else getattr(module, "quant_state", None)


def layer_facts(module: Any) -> LayerFacts:
    """Return what a `Linear4bit` or `Linear8bitLt` holds; one that was never quantized is measured as dense."""
    weight, state = module.weight, state_4bit(module)
    if state is not None:
        return LayerFacts(
            weights_bits=4,
            weights_dtype=state.quant_type,
            format="bitsandbytes",
            group_size=None if state.blocksize == BLOCK else state.blocksize,
            double_quant=bool(state.nested),
        )
    name = dtype_name(weight.dtype)
    if name == "int8" and hasattr(module, "state"):
        return LayerFacts(weights_bits=8, weights_dtype="int8", format="bitsandbytes", symmetric=True, activations_bits=8)
    if name in DENSE_BITS:
        return LayerFacts(weights_bits=DENSE_BITS[name], weights_dtype=name)
    raise VerificationError(f"a bitsandbytes {type(module).__name__} holds {name} without quantization state; load it again")


def dense_weight(module: Any, dtype: Any = None) -> Any:
    """Return a layer's weight as its forward pass uses it, [out, in], in a torch data type (default: float32).

    Raises:
        VerificationError: the weight has been repacked for the CPU fast path.
    """
    import copy

    import torch
    from bitsandbytes import functional

    _refuse_repacked(module, type(module).__name__)
    weight, dtype = module.weight, dtype or torch.float32
    if layer_facts(module).format == "dense":
        return weight.detach().to(dtype)
    if (known := state_4bit(module)) is not None:
        state = copy.copy(known)
        state.dtype = module.compute_dtype or state.dtype
        return functional.dequantize_4bit(weight.data, state).to(dtype)
    codes = module.state.CB if module.state.CB is not None else weight.data
    scales = module.state.SCB if module.state.SCB is not None else weight.SCB
    return codes.to(dtype).mul_(scales.unsqueeze(1).mul(1.0 / 127.0))


def dense_layer(module: Any) -> Any:
    """Return the float32 `nn.Linear` that computes with the same weights; `source_cls` on it is the class the model had."""
    import torch
    from torch import nn

    weight = dense_weight(module)
    dense: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None, device="meta")
    dense.weight = nn.Parameter(weight, requires_grad=False)
    dense.bias = None if module.bias is None else nn.Parameter(module.bias.detach().to(torch.float32), requires_grad=False)
    dense.source_cls = getattr(module, "source_cls", nn.Linear)
    return dense


def quiet() -> None:
    """Drop the log lines of `NOISE`."""
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).addFilter(_without_noise)


def _restore_scales(module: Any, _inputs: Any) -> None:
    if module.weight.CB is not None and module.weight.SCB is None:
        module.weight.SCB = module.state.SCB


def _without_noise(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(NOISE)


def _refuse_repacked(module: Any, name: str) -> None:
    state = getattr(module.weight, "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        raise VerificationError(
            f"{name}: bitsandbytes has repacked its 4-bit weights for fast CPU inference, which rounds their scales; adapters"
            " can neither be trained on nor merged into them. Load the model again with quantkit.modeling.load_base, which"
            " switches the repacking off"
        )


def _refuse_misread(module: Any, name: str) -> None:
    state = getattr(module.weight, "quant_state", None)
    if state is not None and module.weight.device.type == "cpu" and not reads_rows(int(state.shape[-1]), state.quant_type):
        import bitsandbytes

        raise VerificationError(
            f"{name}: bitsandbytes {bitsandbytes.__version__} decodes 4-bit rows of {state.shape[-1]} weights wrongly"
            " on this CPU (wrong weights, no error); use a GPU, or a method that is not bitsandbytes' 4-bit"
        )


@cache
def reads_rows(width: int, quant_type: str) -> bool:
    """Say whether the CPU decodes 4-bit rows of this width as it decodes the same blocks in one long row.

    In 0.50.2 widths that are no multiple of a block of 64 are misread, e.g. 96 and 160: errors up to four times the grid's.
    """
    import copy

    import torch
    from bitsandbytes import functional

    weight = torch.randn(BLOCK, width, generator=torch.Generator().manual_seed(0))
    codes, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type=quant_type)
    long = copy.copy(state)
    long.shape = torch.Size((1, weight.numel()))
    rows, row = functional.dequantize_4bit(codes, state), functional.dequantize_4bit(codes, long)
    return bool(rows.flatten().equal(row.flatten()))
