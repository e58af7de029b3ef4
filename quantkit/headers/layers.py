"""What do the tensors themselves say about how each layer is stored?

A layer is recognised by the names that stand beside each other (`.qweight` with `.scales`, `.weight` with `.SCB`, …), and
bits and group size are computed from shapes. Names alone would confuse GPTQ with AWQ, which differ only in the axis that
is packed.
"""

import json
import re
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from typing import Any

from quantkit.errors import UsageError
from quantkit.headers.facts import Facts
from quantkit.headers.tensorfiles import StoredTensor, TensorIndex

Tensors = Mapping[str, StoredTensor]
PACKED_BITS = (1, 2, 3, 4, 5, 6, 8)
FP8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz"}
BLOCK = 64
"""bitsandbytes' block size; transformers offers no other, so specs count it as no choice (`group_size` null)."""
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
    blocksize, shape = said.get("blocksize"), said.get("shape")
    codes = tensors.get(f"{module}.weight")
    absmax = tensors.get(f"{module}.weight.absmax")
    if codes is None or absmax is None or not isinstance(blocksize, int) or blocksize <= 0 or not _sizes(shape):
        raise UsageError(f"{where}: weight, absmax, blocksize or shape is missing")
    count = 1
    for size in shape:
        count *= size
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
    scale = tensors.get(f"{module}.weight_scale")
    if f"{module}.SCB" in tensors and weight.dtype == "I8":
        return Facts(
            kinds=("bitsandbytes-8bit",), weights_bits=8, weights_dtype="int8", symmetric=True, activations_bits=8
        )
    if weight.dtype in FP8:
        if f"{module}.weight_scale_inv" in tensors:
            return Facts(kinds=("fp8", "compressed-tensors"), weights_bits=8, weights_dtype=FP8[weight.dtype], layout="blocks")
        return Facts(
            kinds=("compressed-tensors", "fp8", "modelopt", "quark") if scale else ("fp8",),
            weights_bits=8,
            weights_dtype=FP8[weight.dtype],
            group_size=_columns_per_scale(weight, scale),
            columns=weight.shape[-1] if weight.shape else None,
            layout="float-quantized" if scale else None,
        )
    if weight.dtype == "I8" and f"{module}.weight_scales" in tensors:
        return Facts(kinds=("eetq",), weights_bits=8, weights_dtype="int8", group_size=-1, symmetric=True)
    if weight.dtype == "I8" and scale is not None:
        return Facts(
            kinds=("compressed-tensors", "quark"),
            weights_bits=8,
            weights_dtype="int8",
            group_size=_columns_per_scale(weight, scale),
            columns=weight.shape[-1] if weight.shape else None,
            symmetric=f"{module}.weight_zero_point" not in tensors,
            layout="int-quantized",
        )
    if weight.dtype == "U8" and scale is not None:
        if weight.shape[:1] != scale.shape[:1] and scale.elements == 1:
            return Facts(kinds=("bitnet",), weights_bits=2, weights_dtype="ternary")
        return Facts(kinds=("modelopt", "nvfp4", "quark", "fp_quant"), weights_bits=4, weights_dtype="fp4")
    if weight.dtype == "I16" and f"{module}.tables" in tensors:
        return Facts(kinds=("higgs",), weights_dtype="higgs")
    if weight.dtype in ("I8", "U8", "I16", "I32") and len(weight.shape) == 2:
        return Facts(kinds=("unknown",))
    return None


def _packed(tensors: Tensors, module: str, packed: StoredTensor) -> Facts:
    scale, shape = tensors.get(f"{module}.weight_scale"), tensors.get(f"{module}.weight_shape")
    if packed.dtype == "U8":
        layout = "nvfp4-pack-quantized" if f"{module}.weight_global_scale" in tensors else "mxfp4-pack-quantized"
        group = None if scale is None or len(packed.shape) != 2 else packed.shape[-1] * 2 // max(scale.shape[-1], 1)
        return Facts(kinds=("compressed-tensors",), weights_bits=4, weights_dtype="fp4", group_size=group, layout=layout)
    where = f"{packed.file}: {module}"
    if scale is None or shape is None or len(packed.shape) != 2:
        raise UsageError(f"{where}: weight_packed stands without weight_scale and weight_shape")
    size = shape.read_ints()
    if len(size) != 2 or size[0] != packed.shape[0] or size[1] <= 0:
        raise UsageError(f"{where}: weight_shape {size} does not fit weight_packed {packed.shape}")
    columns, words = size[1], packed.shape[1]
    bits = _bits_per_word(columns, words)
    if bits is None:
        raise UsageError(f"{where}: {words} words of 32 bits per row do not hold {columns} columns at any known width")
    groups = scale.shape[-1] if len(scale.shape) == 2 else 1
    if groups < 1 or (groups > 1 and columns % groups):
        raise UsageError(f"{where}: {groups} scales per row do not divide {columns} columns")
    return Facts(
        kinds=("compressed-tensors",),
        weights_bits=bits,
        weights_dtype=f"int{bits}",
        group_size=-1 if groups == 1 else columns // groups,
        columns=columns,
        symmetric=f"{module}.weight_zero_point" not in tensors,
        layout="pack-quantized",
    )


def _qweight(tensors: Tensors, module: str, qweight: StoredTensor) -> Facts | None:
    scales, zeros = tensors.get(f"{module}.scales"), tensors.get(f"{module}.qzeros")
    if scales is None:
        return None
    if qweight.dtype != "I32" or len(qweight.shape) != 2 or len(scales.shape) != 2 or 0 in (*qweight.shape, *scales.shape):
        raise UsageError(f"{qweight.file}: {module}: qweight {qweight.shape} and scales {scales.shape} must be non-empty matrices")
    groups, rows = scales.shape
    if qweight.shape[1] == rows and not (zeros is not None and zeros.shape == (groups, rows)):
        kinds = ("gptq", "auto-round", "awq")
        order = tensors.get(f"{module}.g_idx")
        zero_words = zeros.shape[1] if zeros is not None and len(zeros.shape) == 2 else 0
        columns = order.elements if order is not None and order.elements else None
        bits = next((b for b in PACKED_BITS if (qweight.shape[0] * 32 == columns * b if columns else zero_words * 32 == rows * b)), None)
        columns = columns or (qweight.shape[0] * 32 // bits if bits else None)
    else:
        kinds = ("awq", "auto-round", "gptq")
        columns = qweight.shape[0]
        bits = next((b for b in PACKED_BITS if qweight.shape[1] * 32 == rows * b), None)
    if bits is None or columns is None or (groups > 1 and columns % groups):
        raise UsageError(f"{qweight.file}: {module}: qweight {qweight.shape} and scales {scales.shape} fit no known width")
    return Facts(
        kinds=kinds[:2],
        weights_bits=bits,
        weights_dtype=f"int{bits}",
        group_size=-1 if groups == 1 else columns // groups,
        columns=columns,
    )


def _hqq(tensors: Tensors, module: str, codes: StoredTensor) -> Facts:
    numbers = {}
    for name in ("nbits", "group_size"):
        tensor = tensors.get(f"{module}.{name}")
        values = tensor.read_ints() if tensor is not None and tensor.dtype[0] in "IU" and tensor.elements == 1 else ()
        numbers[name] = values[0] if values else None
    bits = numbers["nbits"]
    dtype = None if bits is None else f"int{bits}"
    return Facts(kinds=("hqq",), weights_bits=bits, weights_dtype=dtype, group_size=numbers["group_size"], symmetric=False)


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


def _only(kind: str, dtype: str, bits: int | None, *beside: str, group_size: int | None = None) -> Any:
    def read(tensors: Tensors, module: str, tensor: StoredTensor) -> Facts | None:
        if not all(f"{module}{suffix}" in tensors for suffix in beside):
            return None
        return Facts(kinds=(kind,), weights_bits=bits, weights_dtype=dtype, group_size=group_size)

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
    "weight_packed": _packed,
    "qweight": _qweight,
    "W_q": _hqq,
    "codes": _only("aqlm", "aqlm", None, ".codebooks"),
    "_data": _quanto,
    "gate_up_proj_blocks": _mxfp4("gate_up_proj_blocks"),
    "down_proj_blocks": _mxfp4("down_proj_blocks"),
    "indices": _only("vptq", "vptq", None, ".centroids.weight"),
    "dense_weights": _only("spqr", "spqr", None, ".in_perm"),
}


def _columns_per_scale(weight: StoredTensor, scale: StoredTensor | None) -> int | None:
    if scale is None or len(weight.shape) != 2 or len(scale.shape) != 2 or scale.shape[0] != weight.shape[0]:
        return None
    return -1 if scale.shape[1] == 1 else weight.shape[1] // scale.shape[1] if scale.shape[1] else None


def _bits_per_word(columns: int, words: int) -> int | None:
    return next((b for b in PACKED_BITS if words in (-(-columns // (32 // b)), -(-columns * b // 32))), None)


def _sizes(shape: object) -> bool:
    return isinstance(shape, list) and bool(shape) and all(isinstance(value, int) and 0 < value < 2**40 for value in shape)
