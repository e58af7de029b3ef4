"""Folders as the quantization libraries write them, with the same tensor names, types and shapes, made without them.

Names and shapes were taken from checkpoints that transformers 5.23, bitsandbytes 0.50.2, compressed-tensors 0.20 and
torchao 0.18 saved from the tiny model; `test_headers.py` compares the bitsandbytes ones with fresh real ones.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.headers.tensorfiles import BITS_OF_DTYPE

ROWS, COLUMNS = 128, 256
LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj")
Tensor = tuple[str, tuple[int, ...]] | tuple[str, tuple[int, ...], bytes]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Write a safetensors file; tensors without bytes are zeros."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    data = b""
    for name, tensor in tensors.items():
        dtype, shape = tensor[0], tensor[1]
        count = 1
        for size in shape:
            count *= size
        content = tensor[2] if len(tensor) == 3 else bytes(count * BITS_OF_DTYPE[dtype] // 8)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def write_model(
    folder: Path,
    layer: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a model folder whose layers all have these tensors; `config` is the `quantization_config`."""
    tensors: dict[str, Tensor] = {
        "model.embed_tokens.weight": ("BF16", (512, COLUMNS)),
        "model.norm.weight": ("BF16", (COLUMNS,)),
    }
    for module in LAYERS:
        tensors |= {f"{module}{suffix}": tensor for suffix, tensor in layer.items()}
    write_tensors(folder / "model.safetensors", tensors, metadata)
    stated = {"model_type": "llama", "dtype": "bfloat16"} | ({"quantization_config": dict(config)} if config else {})
    (folder / "config.json").write_text(json.dumps(stated))
    return folder


def dense(folder: Path, dtype: str = "BF16") -> Path:
    """A 16- or 32-bit model."""
    return write_model(folder, {".weight": (dtype, (ROWS, COLUMNS))})


def bnb4(folder: Path, *, quant_type: str = "nf4", double: bool = False, config: Mapping[str, Any] | None = None) -> Path:
    """A bitsandbytes 4-bit model; `config` replaces keys of its `quantization_config`."""
    state = {"quant_type": quant_type, "blocksize": 64, "dtype": "bfloat16", "shape": [ROWS, COLUMNS]}
    text = json.dumps(state | ({"nested_blocksize": 256} if double else {})).encode()
    blocks = ROWS * COLUMNS // 64
    layer: dict[str, Tensor] = {
        ".weight": ("U8", (ROWS * COLUMNS // 2, 1)),
        ".weight.absmax": ("U8" if double else "F32", (blocks,)),
        ".weight.quant_map": ("F32", (16,)),
        f".weight.quant_state.bitsandbytes__{quant_type}": ("U8", (len(text),), text),
    }
    if double:
        layer |= {".weight.nested_absmax": ("F32", (2,)), ".weight.nested_quant_map": ("F32", (256,))}
    stated = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
    stated |= {"bnb_4bit_quant_type": quant_type, "bnb_4bit_use_double_quant": double}
    return write_model(folder, layer, stated | dict(config or {}))


def bnb8(folder: Path) -> Path:
    """An LLM.int8 model."""
    layer: dict[str, Tensor] = {".weight": ("I8", (ROWS, COLUMNS)), ".SCB": ("F32", (ROWS,)), ".weight_format": ("U8", ())}
    return write_model(folder, layer, {"quant_method": "bitsandbytes", "load_in_8bit": True})


def gptq(folder: Path, *, bits: int = 4, group_size: int = 128, sym: bool = True, said_bits: int | None = None) -> Path:
    """A GPTQ model; `said_bits` makes its configuration lie."""
    groups = 1 if group_size == -1 else COLUMNS // group_size
    layer: dict[str, Tensor] = {
        ".qweight": ("I32", (COLUMNS * bits // 32, ROWS)),
        ".qzeros": ("I32", (groups, ROWS * bits // 32)),
        ".scales": ("F16", (groups, ROWS)),
        ".g_idx": ("I32", (COLUMNS,)),
    }
    stated = {"quant_method": "gptq", "bits": said_bits or bits, "group_size": group_size, "sym": sym, "desc_act": False}
    return write_model(folder, layer, stated)


def awq(folder: Path, *, group_size: int = 128) -> Path:
    """An AWQ (gemm) model."""
    groups = COLUMNS // group_size
    layer: dict[str, Tensor] = {
        ".qweight": ("I32", (COLUMNS, ROWS * 4 // 32)),
        ".qzeros": ("I32", (groups, ROWS * 4 // 32)),
        ".scales": ("F16", (groups, ROWS)),
    }
    return write_model(folder, layer, {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True})


def packed(folder: Path, *, bits: int = 4, group_size: int | None = 64, symmetric: bool = True) -> Path:
    """A compressed-tensors `pack-quantized` model; without group size, one scale per row."""
    groups = COLUMNS // group_size if group_size else 1
    layer: dict[str, Tensor] = {
        ".weight_packed": ("I32", (ROWS, COLUMNS * bits // 32)),
        ".weight_scale": ("BF16", (ROWS, groups)),
        ".weight_shape": ("I64", (2,), struct.pack("<2q", ROWS, COLUMNS)),
    }
    if not symmetric:
        layer[".weight_zero_point"] = ("I32", (ROWS * bits // 32, groups))
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": group_size}
    return write_model(folder, layer, ct_config("pack-quantized", weights | {"strategy": "group" if group_size else "channel"}))


def w8a8(folder: Path, *, floats: bool = False) -> Path:
    """A compressed-tensors model with 8-bit weights and activations, integers or floats."""
    layer: dict[str, Tensor] = {
        ".weight": ("F8_E4M3" if floats else "I8", (ROWS, COLUMNS)),
        ".weight_scale": ("BF16", (ROWS, 1)),
    }
    kind = "float" if floats else "int"
    weights = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "channel", "group_size": None}
    inputs = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True}
    return write_model(folder, layer, ct_config(f"{kind}-quantized", weights, inputs))


def ct_config(layout: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a compressed-tensors `quantization_config`."""
    group = {"targets": ["Linear"], "weights": dict(weights), "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


def torchao(folder: Path) -> Path:
    """A torchao int8 weight-only model, with the file metadata in which torchao describes its tensors."""
    layer: dict[str, Tensor] = {
        "._weight_qdata": ("I8", (ROWS, COLUMNS)),
        "._weight_scale": ("F32", (ROWS, 1)),
        "._weight_zero_point": ("I8", (ROWS, 1)),
    }
    said = json.dumps({"_type": "Int8Tensor", "_data": {"act_quant_kwargs": None, "block_size": [1, COLUMNS]}})
    stated = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}}
    return write_model(folder, layer, stated, {f"{module}.weight": said for module in LAYERS})


def gguf(path: Path, *, file_type: int = 15) -> Path:
    """The beginning of a GGUF file."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    entries = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    entries += text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    entries += text("scores") + struct.pack("<IIQ2f", 9, 6, 2, 0.0, 1.0)
    entries += text("general.file_type") + struct.pack("<II", 4, file_type)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 4) + entries)
    return path


def adapter(folder: Path, *, base: str = "org/Base", rank: int = 8, config: Mapping[str, Any] | None = None) -> Path:
    """A PEFT LoRA adapter."""
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors: dict[str, Tensor] = {
        f"{name}.lora_A.weight": ("F32", (rank, COLUMNS)),
        f"{name}.lora_B.weight": ("F32", (ROWS, rank)),
    }
    write_tensors(folder / "adapter_model.safetensors", tensors)
    stated = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "base_model_name_or_path": base, "use_dora": False}
    (folder / "adapter_config.json").write_text(
        json.dumps(stated | {"use_rslora": False, "revision": None} | dict(config or {}))
    )
    return folder
