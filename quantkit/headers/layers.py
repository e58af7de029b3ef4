"""What do the tensors themselves say about how each layer is stored?

A layer is recognised by the names that stand beside each other (`.qweight` with `.scales`, `.weight` with `.SCB`, …), and
bits and group size are computed from shapes. Names alone would confuse GPTQ with AWQ, which differ only in the axis that
is packed.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Set
from dataclasses import replace

from quantkit.errors import UsageError
from quantkit.headers.facts import Facts
from quantkit.headers.packed import gptq_or_awq, hqq_codes, packed_words
from quantkit.headers.tensorfiles import StoredTensor, TensorIndex

Tensors = Mapping[str, StoredTensor]
FP8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz"}
BLOCK = 64
"""bitsandbytes' block size; transformers offers no other, so specs count it as no choice (`group_size` null)."""
BESIDE_WEIGHT = ("SCB", "weight_scale", "weight_scale_inv", "weight_scales", "weight_zero_point", "tables")
"""Tensors whose presence beside `.weight` tells formats apart."""
QUANT_STATE = re.compile(r"(.*)\.weight\.quant_state\.bitsandbytes__(nf4|fp4)")


def quantized_layers(index: TensorIndex, group_size: int | None = None) -> dict[str, tuple[Facts, int]]:
    """Return layer name → what its tensors say, and how many bytes they take.

    A layer with one scale per row and exactly `group_size` columns counts as grouped: its tensors cannot tell the two apart.
    `group_size` is what the configuration claims; None takes it from the other layers.

    Raises:
        UsageError: the parts of a layer do not fit each other; the text names the layer.
    """
    found: dict[str, tuple[Facts, int]] = {}
    for name, tensor in index.tensors.items():
        if state := QUANT_STATE.fullmatch(name):
            found[state[1]] = (_bitsandbytes_4bit(index.tensors, state[1], state[2], tensor), tensor.size_bytes)
            continue
        module, _, leaf = name.rpartition(".")
        reader = READERS.get(leaf)
        facts = reader(index.tensors, module, tensor) if reader else None
        if facts is None and name in index.metadata:
            facts = _torchao_plain(index, name)
        if facts is not None:
            found[module] = (facts, tensor.size_bytes)
    for name, said in index.metadata.items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and f"{module}._weight_qdata" in index.tensors:
            found[module] = _torchao(index, module, said)
    grouped = {facts.group_size for facts, _ in found.values() if facts.group_size not in (None, -1)}
    expected = grouped | {group_size} if group_size else grouped
    return {name: (_settled(facts, expected), size) for name, (facts, size) in found.items()}


def _settled(facts: Facts, group_sizes: Set[int | None]) -> Facts:
    known = facts.columns if facts.group_size == -1 and facts.columns in group_sizes else facts.group_size
    return replace(facts, group_size=known, columns=None)


def _bitsandbytes_4bit(tensors: Tensors, module: str, dtype: str, state: StoredTensor) -> Facts:
    where = f"{state.file}: {module}.weight.quant_state"
    try:
        said = json.loads(state.read_bytes())
    except (ValueError, RecursionError):
        raise UsageError(f"{where}: is no JSON") from None
    if not isinstance(said, dict) or said.get("quant_type") != dtype:
        raise UsageError(f"{where}: its name says {dtype}, its content {str(said)[:60]}")
    blocksize, shape = said.get("blocksize"), _sizes(said.get("shape"))
    codes = tensors.get(f"{module}.weight")
    absmax = tensors.get(f"{module}.weight.absmax")
    if codes is None or absmax is None or not isinstance(blocksize, int) or blocksize <= 0 or not shape:
        raise UsageError(f"{where}: weight, absmax, blocksize or shape is missing")
    count = math.prod(shape)
    if codes.size_bytes != -(-count // 2) or absmax.elements != -(-count // blocksize):
        raise UsageError(
            f"{where}: shape {shape} with blocks of {blocksize} takes {-(-count // 2)} bytes of codes and"
            f" {-(-count // blocksize)} scales; found {codes.size_bytes} and {absmax.elements}"
        )
    return Facts(
        kinds=("bitsandbytes-4bit",),
        weights_bits=4,
        weights_dtype=dtype,
        group_size=None if blocksize == BLOCK else blocksize,
        double_quant=f"{module}.weight.nested_absmax" in tensors,
    )


def _plain_weight(tensors: Tensors, module: str, weight: StoredTensor) -> Facts | None:
    beside = {name for name in BESIDE_WEIGHT if f"{module}.{name}" in tensors}
    if weight.dtype in FP8:
        return _float8(tensors, module, weight, beside)
    if weight.dtype == "I8" and beside:
        return _int8(tensors, module, weight, beside)
    if weight.dtype == "U8" and "weight_scale" in beside:
        if tensors[f"{module}.weight_scale"].elements == 1:
            return Facts(kinds=("bitnet",), weights_bits=2, weights_dtype="ternary")
        return Facts(kinds=("modelopt", "nvfp4", "quark", "fp_quant"), weights_bits=4, weights_dtype="fp4")
    if weight.dtype == "I16" and "tables" in beside:
        return Facts(kinds=("higgs",), weights_dtype="higgs")
    is_odd = weight.dtype in ("I8", "U8", "I16", "I32") and len(weight.shape) == 2
    return Facts(kinds=("unknown",)) if is_odd else None


def _float8(tensors: Tensors, module: str, weight: StoredTensor, beside: Set[str]) -> Facts:
    dtype = FP8[weight.dtype]
    if "weight_scale_inv" in beside:
        return Facts(kinds=("fp8", "compressed-tensors"), weights_bits=8, weights_dtype=dtype)
    if "weight_scale" not in beside:
        return Facts(kinds=("fp8",), weights_bits=8, weights_dtype=dtype)
    return Facts(
        kinds=("compressed-tensors", "fp8", "modelopt", "quark"),
        weights_bits=8,
        weights_dtype=dtype,
        group_size=_columns_per_scale(weight, tensors[f"{module}.weight_scale"]),
        columns=weight.shape[-1] if weight.shape else None,
        layout="float-quantized",
    )


def _int8(tensors: Tensors, module: str, weight: StoredTensor, beside: Set[str]) -> Facts:
    if "SCB" in beside:
        return Facts(kinds=("bitsandbytes-8bit",), weights_bits=8, weights_dtype="int8", symmetric=True, activations_bits=8)
    if "weight_scales" in beside:
        return Facts(kinds=("eetq",), weights_bits=8, weights_dtype="int8", symmetric=True)
    if "weight_scale" not in beside:
        return Facts(kinds=("unknown",))
    return Facts(
        kinds=("compressed-tensors", "quark"),
        weights_bits=8,
        weights_dtype="int8",
        group_size=_columns_per_scale(weight, tensors[f"{module}.weight_scale"]),
        columns=weight.shape[-1] if weight.shape else None,
        symmetric="weight_zero_point" not in beside,
        layout="int-quantized",
    )


def _torchao(index: TensorIndex, module: str, said: str) -> tuple[Facts, int]:
    codes = index.tensors[f"{module}._weight_qdata"]
    try:
        entry = json.loads(said)
        data = entry.get("_data", {}) if isinstance(entry, dict) else {}
        data = data if isinstance(data, dict) else {}
    except (ValueError, RecursionError):
        data = {}
    target = data.get("target_dtype")
    named = target.get("_data") if isinstance(target, dict) else None
    dtype = named if isinstance(named, str) else FP8.get(codes.dtype, {"I8": "int8"}.get(codes.dtype))
    bits = re.search(r"(?:int|float)(\d)", dtype or "")
    block = data.get("block_size")
    group = None
    if isinstance(block, list) and len(block) == 2 and isinstance(block[1], int) and len(codes.shape) == 2:
        group = -1 if block[1] == codes.shape[1] and block[0] == 1 else block[1] if block[0] == 1 and block[1] > 0 else None
    facts = Facts(
        kinds=("torchao",),
        weights_bits=int(bits[1]) if bits else None,
        weights_dtype=dtype,
        group_size=group,
        columns=codes.shape[-1] if codes.shape else None,
        activations_bits=8 if data.get("act_quant_kwargs") or data.get("activation_quantization") else None,
    )
    return facts, codes.size_bytes


def _torchao_plain(index: TensorIndex, name: str) -> Facts | None:
    said = index.metadata[name]
    return Facts(kinds=("torchao",)) if '"_type"' in said and '"_type": "Tensor"' not in said else None


def _only(kind: str, beside: str) -> Callable[[Tensors, str, StoredTensor], Facts | None]:
    def read(tensors: Tensors, module: str, _tensor: StoredTensor) -> Facts | None:
        return Facts(kinds=(kind,), weights_dtype=kind) if f"{module}.{beside}" in tensors else None

    return read


def _quanto(tensors: Tensors, module: str, codes: StoredTensor) -> Facts | None:
    if not module.endswith(".weight") or f"{module}._scale" not in tensors:
        return None
    dtype = FP8.get(codes.dtype, {"I8": "int8"}.get(codes.dtype))
    return Facts(kinds=("quanto",), weights_bits=8 if dtype else None, weights_dtype=dtype)


def _mxfp4(leaf: str) -> Callable[[Tensors, str, StoredTensor], Facts | None]:
    def read(tensors: Tensors, module: str, blocks: StoredTensor) -> Facts | None:
        scales = tensors.get(f"{module}.{leaf.removesuffix('_blocks')}_scales")
        if scales is None or blocks.dtype != "U8":
            return None
        return Facts(kinds=("mxfp4",), weights_bits=4, weights_dtype="mxfp4", group_size=32)

    return read


READERS: dict[str, Callable[[Tensors, str, StoredTensor], Facts | None]] = {
    "weight": _plain_weight,
    "weight_packed": packed_words,
    "qweight": gptq_or_awq,
    "W_q": hqq_codes,
    "codes": _only("aqlm", "codebooks"),
    "_data": _quanto,
    "gate_up_proj_blocks": _mxfp4("gate_up_proj_blocks"),
    "down_proj_blocks": _mxfp4("down_proj_blocks"),
    "indices": _only("vptq", "centroids.weight"),
    "dense_weights": _only("spqr", "in_perm"),
}


def _columns_per_scale(weight: StoredTensor, scale: StoredTensor) -> int | None:
    if len(weight.shape) != 2 or len(scale.shape) != 2 or scale.shape[0] != weight.shape[0]:
        return None
    return -1 if scale.shape[1] == 1 else weight.shape[1] // scale.shape[1] if scale.shape[1] else None


def _sizes(shape: object) -> list[int]:
    values = shape if isinstance(shape, list) else []
    return values if all(isinstance(value, int) and 0 < value < 2**40 for value in values) else []
