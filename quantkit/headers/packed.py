"""How wide are codes that are packed into words, and how many columns share a scale? Told from shapes alone."""

from collections.abc import Mapping

from quantkit.errors import UsageError
from quantkit.headers.facts import Facts
from quantkit.headers.tensorfiles import StoredTensor

Tensors = Mapping[str, StoredTensor]
PACKED_BITS = (1, 2, 3, 4, 5, 6, 8)


def packed_words(tensors: Tensors, module: str, packed: StoredTensor) -> Facts:
    """Return what a compressed-tensors layer with `weight_packed` holds."""
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


def gptq_or_awq(tensors: Tensors, module: str, qweight: StoredTensor) -> Facts | None:
    """Return what a layer with `qweight` and `scales` holds: GPTQ packs the input axis, AWQ the output axis."""
    scales, zeros = tensors.get(f"{module}.scales"), tensors.get(f"{module}.qzeros")
    if scales is None:
        return None
    where = f"{qweight.file}: {module}: qweight {qweight.shape} and scales {scales.shape}"
    if qweight.dtype != "I32" or len(qweight.shape) != 2 or len(scales.shape) != 2 or 0 in (*qweight.shape, *scales.shape):
        raise UsageError(f"{where} must be matrices of 32-bit words and of numbers")
    groups, rows = scales.shape
    if qweight.shape[1] == rows and not (zeros is not None and zeros.shape == (groups, rows)):
        kinds = ("gptq", "auto-round", "awq")
        order = tensors.get(f"{module}.g_idx")
        columns = order.elements if order is not None else 0
        if columns:
            bits = _exact_bits(qweight.shape[0], columns)
        else:
            bits = _exact_bits(zeros.shape[1], rows) if zeros is not None and len(zeros.shape) == 2 else None
            columns = qweight.shape[0] * 32 // bits if bits else 0
    else:
        kinds = ("awq", "auto-round", "gptq")
        columns = qweight.shape[0]
        bits = _exact_bits(qweight.shape[1], rows)
    if bits is None or not columns or (groups > 1 and columns % groups):
        raise UsageError(f"{where} fit no known width")
    return Facts(
        kinds=kinds[:2],
        weights_bits=bits,
        weights_dtype=f"int{bits}",
        group_size=-1 if groups == 1 else columns // groups,
        columns=columns,
    )


def hqq_codes(tensors: Tensors, module: str, _codes: StoredTensor) -> Facts:
    """Return what a layer with `W_q` says of itself in its small tensors."""
    numbers = {}
    for name in ("nbits", "group_size"):
        tensor = tensors.get(f"{module}.{name}")
        values = tensor.read_ints() if tensor is not None and tensor.dtype[0] in "IU" and tensor.elements == 1 else ()
        numbers[name] = values[0] if values else None
    bits = numbers["nbits"]
    dtype = None if bits is None else f"int{bits}"
    return Facts(kinds=("hqq",), weights_bits=bits, weights_dtype=dtype, group_size=numbers["group_size"], symmetric=False)


def _bits_per_word(columns: int, words: int) -> int | None:
    return next((b for b in PACKED_BITS if words in (-(-columns // (32 // b)), -(-columns * b // 32))), None)


def _exact_bits(words: int, codes: int) -> int | None:
    return next((b for b in PACKED_BITS if words * 32 == codes * b), None)
