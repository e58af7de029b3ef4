"""Is a model in memory fit to be saved, and in which data types?

Kind, values and measured weights are checked against the record before a byte is written, and what is not quantized is cast
to its storage type here. Leaving these to `save_pretrained` stores whatever is in memory: NaN, float32 copies of a 16-bit
model, an adapter that was never trained.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from quantkit.errors import UsageError, VerificationError
from quantkit.plan import QuantizationPlan
from quantkit.spec import QuantizationSpec

SAMPLING_ONLY = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Generation settings without effect under greedy decoding, which transformers refuses to save beside `do_sample=False`."""


def check_before_saving(model: Any, record: Mapping[str, Any]) -> dict[str, Any]:
    """Check the model in memory against its record; return how many tensors and bytes will be stored.

    Raises:
        UsageError: the record is of another kind than the model.
        VerificationError: a value is not finite, or the weights measure otherwise than the record says.
    """
    from quantkit.adapters import check_adapter_tensors
    from quantkit.layers import bare_model
    from quantkit.measure import check_model, loaded_spec

    is_adapter = bare_model(model) is not model
    if is_adapter != (record["kind"] == "adapter"):
        raise UsageError(
            f"the record says kind {record['kind']!r}, but the model carries {'an' if is_adapter else 'no'} adapter;"
            " one folder is one kind of artifact"
        )
    tensors = tensors_to_store(model, is_adapter)
    if is_adapter:
        check_adapter_tensors(tensors, set(tensors), where="adapter to be saved")
        check_model(model, loaded_spec(QuantizationPlan.from_dict(record["recipe"])))
    else:
        _require_finite(tensors)
        check_model(model, QuantizationSpec.from_dict(record["quantization"]))
    return {"tensors": len(tensors), "bytes": _stored_bytes(tensors)}


def store_dense_as(model: Any, dtype: str, *, lm_head_dtype: str | None = None) -> Any:
    """Cast what is not quantized to the data type it is to be stored in; return the model.

    Quantized weights, their scales, and buffers (rotary frequencies and the like) stay as they are. The head may have a type of
    its own; where it is tied to the embeddings, they get it too. `from_pretrained` casts it to the model's type on loading.
    """
    import torch

    from quantkit.layers import bare_model, output_head

    head = output_head(model)[1]
    head_weight = getattr(head, "weight", None)
    for module in bare_model(model).modules():
        for name, parameter in module._parameters.items():
            if parameter is None or type(parameter) is not torch.nn.Parameter or not parameter.is_floating_point():
                continue
            wanted = lm_head_dtype or dtype if parameter is head_weight or module is head else dtype
            if parameter.element_size() >= 2 and not belongs_to_quantized(module, name):
                parameter.data = parameter.data.to(getattr(torch, wanted))
    config = bare_model(model).config
    config.dtype = getattr(torch, dtype)
    return model


def make_generation_config_saveable(model: Any) -> list[str]:
    """Leave out sampling settings that greedy decoding does not read, if they keep the configuration from being saved."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return []
    try:
        config.validate(strict=True)
    except ValueError:
        dropped = [name for name in SAMPLING_ONLY if not config.do_sample and getattr(config, name, None) is not None]
        for name in dropped:
            setattr(config, name, None)
        try:
            config.validate(strict=True)
        except ValueError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UsageError(f"the model's generation_config cannot be saved: {' '.join(lines[:2])}") from None
        return dropped
    return []


def tensors_to_store(model: Any, is_adapter: bool) -> dict[str, Any]:
    """Return name → tensor of what the artifact's weight files will hold; tensors made of others (torchao's) part by part."""
    if is_adapter:
        from peft import get_peft_model_state_dict

        return dict(get_peft_model_state_dict(model, save_embedding_layers=False))
    return {name: part for key, tensor in model.state_dict().items() for name, part in _parts(key, tensor)}


def _parts(name: str, tensor: Any) -> Iterator[tuple[str, Any]]:
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if not is_traceable_wrapper_subclass(tensor):
        yield name, tensor
        return
    for part in tensor.__tensor_flatten__()[0]:
        yield from _parts(f"{name}_{part}", getattr(tensor, part))


def _require_finite(tensors: Mapping[str, Any]) -> None:
    codes = {name.partition(".quant_state.")[0] for name in tensors if ".quant_state." in name}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or name in codes:  # 4-bit codes may be stored as floats, of any value
            continue
        values = tensor.bfloat16() if tensor.element_size() == 1 else tensor  # torch does not look into 8-bit floats
        if not bool(values.isfinite().all()):
            raise VerificationError(f"{name} holds values that are not finite; nothing was saved")


def _stored_bytes(tensors: Mapping[str, Any]) -> int:
    """Return the bytes of all tensors, those that share memory counted once."""
    return sum({(tensor.data_ptr(), tensor.nbytes): tensor.nbytes for tensor in tensors.values()}.values())


def belongs_to_quantized(module: Any, name: str) -> bool:
    """Whether a floating parameter is part of a quantized layer's storage (scales, zero points) rather than a dense weight."""
    from quantkit.backends import layer_facts
    from quantkit.layers import is_linear

    if not is_linear(module) or name == "bias":
        return False
    return layer_facts(module).format != "dense"
