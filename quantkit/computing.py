"""In which data type is a loaded model evaluated? In one per machine, so that what stands in one table was computed alike.

A base is stored in 16 bit, an adapter's recipe names what its training happened to compute in, a quantization its scales'
type: loaded as each of them says, a model and its own quantization differ by more than the quantization. So everything is
loaded and measured as it is stored, and then computed in what the device is fast in. Only weights may ask for more: where
that data type would round one of them, the model is computed in a wider one, because it would be another model otherwise.

A CPU is told by its instructions, not by timing a product as training does: two processes of one table must choose alike.
"""

from collections.abc import Iterator
from typing import Any

from quantkit.backends.facts import dtype_name, is_torchao
from quantkit.errors import UsageError
from quantkit.layout import format_bytes
from quantkit.spec import DENSE_BITS

ASKED, OF_DEVICE, OF_WEIGHTS = "asked for", "of the device", "of the weights"
"""Why a model was computed in its data type; a result's `dtype_reason`."""


def device_dtype(device: str) -> str:
    """Return the data type in which models are evaluated on this device.

    bfloat16 where the device multiplies in it, also on CPUs (AVX512-BF16, AMX): SmolLM2-135M answered 2.5 times as fast as in
    float32 on a core of Zen 5. Else float16 on CUDA, and float32 on a CPU, where bfloat16 would be emulated.
    """
    import torch

    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    has_units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if has_units else "float32"


def check_dtype(dtype: str) -> None:
    """Raise `UsageError` for a `--dtype` that is neither `auto` nor a dense data type."""
    if dtype not in ("auto", *DENSE_BITS):
        raise UsageError(f"--dtype is {dtype!r}; use auto, {', '.join(DENSE_BITS)}")


def compute_in(model: Any, dtype: str, device: str) -> Any:
    """Let a model that was loaded and measured compute in a data type; return it.

    `auto` is `device_dtype`, or a wider one where that would round a weight. Adapters are put on afterwards: they stay float32.

    Raises:
        UsageError: the wider data type takes more memory than is free.
    """
    import torch

    held = list(_held(model))
    now = held[0].dtype
    wanted = getattr(torch, device_dtype(device) if dtype == "auto" else dtype)
    held = [item for item in held if item.dtype is now]
    if dtype == "auto" and any(_is_rounded(item.data, wanted) for item in held):
        wanted = now if device.startswith("cuda") else torch.float32
    _require_room(held, wanted, device)
    for item in held:
        item.data = item.data.to(wanted)
    _tell_layers(model, wanted)
    return model


def why(model: Any, dtype: str, device: str) -> str:
    """Return why a model that `compute_in` was given computes in what it computes in."""
    if dtype != "auto":
        return ASKED
    return OF_DEVICE if dtype_name(model.dtype) == device_dtype(device) else OF_WEIGHTS


def _held(model: Any) -> Iterator[Any]:
    """Yield the dense parameters, the input embeddings first; codes, scales, and what the architecture keeps in float32 not."""
    import torch

    from quantkit.backends.unpacked import UnpackedLinear
    from quantkit.storable import belongs_to_quantized

    kept = {
        *(getattr(model, "_keep_in_fp32_modules", None) or ()),
        *(getattr(model, "_keep_in_fp32_modules_strict", None) or ()),
    }
    first = model.get_input_embeddings().weight
    yield first
    for path, module in model.named_modules():
        for name, item in module._parameters.items():
            if item is None or item is first or type(item) is not torch.nn.Parameter or not item.is_floating_point():
                continue
            if item.element_size() < 2 or kept.intersection(path.split(".")):
                continue
            if getattr(module, "quantization_scheme", None) is not None or isinstance(module, UnpackedLinear):
                yield item  # layers of compressed-tensors' own multiply by their scales' type
            elif not belongs_to_quantized(module, name):
                yield item


def _is_rounded(values: Any, dtype: Any) -> bool:
    import torch

    exact = values.dtype is dtype or torch.finfo(dtype).bits > torch.finfo(values.dtype).bits
    return not exact and not torch.equal(values.to(dtype).to(values.dtype), values)


def _require_room(held: list[Any], dtype: Any, device: str) -> None:
    if device.startswith("cuda"):
        return  # says so itself
    import psutil

    more = sum(item.numel() * dtype.itemsize - item.nbytes for item in {id(item): item for item in held}.values())
    if more > (free := psutil.virtual_memory().available):
        raise UsageError(
            f"computing in {dtype_name(dtype)} takes {format_bytes(more)} more than the weights as they are stored, and"
            f" {format_bytes(free)} are free; --dtype {dtype_name(held[0].dtype)} takes no more"
        )


def _tell_layers(model: Any, dtype: Any) -> None:
    """Let quantized layers hand out this data type."""
    from quantkit.backends import bitsandbytes

    name = dtype_name(dtype)
    bitsandbytes.compute_in(model, name)
    if any(is_torchao(module) for module in model.modules()):
        from quantkit.backends import torchao

        torchao.compute_in(model, name)
    model.config.dtype = dtype
