"""What if the base of a run is quantized already, as a folder? Then it is taken as it is, not quantized a second time.

Methods that quantize on their own, not while loading, have the base as an artifact first; adapters are trained on what its
folder holds, dequantized, and evaluated on the same. Quantizing anew for each load would give another base on another
machine, and calibrated methods would need their text again.
"""

from pathlib import Path
from typing import Any

from quantkit.files import read_json

READ_HERE = ("compressed-tensors", "bitsandbytes", "torchao", "gptq", "awq", "fp8")
"""Formats of stored bases for which no plugin is asked."""


def stored_format(path: str) -> str | None:
    """Return the quantization format of a local folder as its configuration names it; None: dense, or no local folder."""
    config = Path(path).expanduser() / "config.json"
    stated = read_json(config).get("quantization_config") if config.is_file() else None
    return str(stated.get("quant_method", "unknown")) if isinstance(stated, dict) else None


def stored_kwargs(path: str) -> dict[str, Any]:
    """Return what `from_pretrained` needs so that a stored base can carry adapters: integer weights come dequantized."""
    stated = read_json(Path(path).expanduser() / "config.json")["quantization_config"]
    if stored_format(path) != "compressed-tensors" or stated.get("dequantize"):
        return {}
    from transformers import CompressedTensorsConfig

    return {"quantization_config": CompressedTensorsConfig(dequantize=True)}


def as_stored(model: Any, path: str, dtype: str) -> Any:
    """Return a model that `stored_kwargs` loaded, its layers compared with the folder and measured as what they are there.

    What is dense beside bitsandbytes layers, transformers leaves in the data type it is stored in: it is cast to `dtype`, and
    the 4-bit layers compute in that, as if they had been quantized while loading.

    Raises:
        VerificationError: a layer in memory is not what the folder holds.
    """
    if stored_format(path) == "bitsandbytes":
        from quantkit.backends.bitsandbytes import compute_in
        from quantkit.storable import store_dense_as

        return compute_in(store_dense_as(model, dtype), dtype)
    if stored_format(path) == "torchao":
        from quantkit.backends import torchao

        return torchao.compute_in(model, dtype)
    if stored_format(path) != "compressed-tensors":
        return model
    from quantkit.backends.unpacked import mark_unpacked

    return mark_unpacked(model, Path(path).expanduser())


def with_packed_layers(model: Any, path: str) -> Any:
    """Put back the packed layers that the checkpoint's own `dequantize` made transformers unpack, so they can be measured."""
    if stored_format(path) != "compressed-tensors":
        return model
    from quantkit.backends.compressed_tensors import repack_model

    folder = Path(path).expanduser()
    unpacked = read_json(folder / "config.json")["quantization_config"].get("dequantize", False)
    return repack_model(model, folder) if unpacked else model
