"""Tiny folders in each storage format that exports start from."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as hf_logging

from quantkit.backends.awq_format import store_awq
from quantkit.backends.compressed_tensors import compress_model
from quantkit.backends.gptq_format import store_gptq
from quantkit.numerics.grids import QuantizedWeight, UniformGrid, quantize

hf_logging.disable_progress_bar()
STORE = {"gptq": store_gptq, "awq": store_awq, "compressed-tensors": compress_model}


def rounded(model: nn.Module, grid: UniformGrid, leave_out: tuple[str, ...] = ("lm_head",)) -> dict[str, QuantizedWeight]:
    """Return the model's linear layers on this grid, but those whose names end so."""
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name: quantize(item.weight.data, grid) for name, item in linears.items() if not name.endswith(leave_out)}


def grid_folder(source: Path, folder: Path, format: str, grid: UniformGrid, **more: Any) -> Path:
    """Write a model on an integer grid in one of the formats; `more` goes to its writer."""
    leave_out = more.pop("leave_out", ("lm_head",))
    model = AutoModelForCausalLM.from_pretrained(source, dtype=grid.scale_dtype)
    STORE[format](model, rounded(model, grid, leave_out), **more)
    return finished(model, source, folder)


def bnb_folder(source: Path, folder: Path, **config: Any) -> Path:
    """Write a bitsandbytes model."""
    settings = BitsAndBytesConfig(**config)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, quantization_config=settings, device_map="cpu")
    return finished(model, source, folder)


def fp8_folder(source: Path, folder: Path, *, block: int = 64) -> Path:
    """Write a model whose linear layers are FP8 codes with one scale per square block, as transformers and vLLM read them."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "proj" in name]:
        rows, columns = tensors[name].shape
        blocks = tensors[name].float().reshape(rows // block, block, columns // block, block)
        scale = blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
        tensors[name] = (blocks / scale[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    stated = {"quant_method": "fp8", "weight_block_size": [block, block], "activation_scheme": "dynamic"}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": stated}))
    return folder


def finished(model: Any, source: Path, folder: Path) -> Path:
    """Save a model with the source's tokenizer."""
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder
