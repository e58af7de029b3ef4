"""How many bytes does a layer's weight take, in each storage format, on disk and while adapters are trained on it?

Codes, scales, zero points and tables are counted as the formats keep them. Bits per weight times weights, the usual
estimate, is off by an eighth for NF4 and by half where groups are small.
"""

from quantkit.errors import UsageError
from quantkit.forecasting.shape import LinearShape, ModelShape
from quantkit.spec import DENSE_BITS, QuantizationSpec

BLOCK = 64
"""Weights that share one of bitsandbytes' 4-bit scales."""
NESTED = 256
"""Scales that share a scale of their own in double quantization (arXiv:2305.14314, section 3)."""
UNPACKED = ("compressed-tensors", "gptq", "awq")
"""Formats whose layers are unpacked to dense ones while adapters are trained on them (`quantkit.backends.unpacked`)."""


def check_groups(spec: QuantizationSpec, shape: ModelShape) -> None:
    """Check that the spec's groups divide the input columns of every layer.

    Raises:
        UsageError: they do not; names the layer and sizes that fit.
    """
    size = spec.group_size
    if not spec.is_quantized or size is None or size < 1:
        return
    for layer in shape.linears:
        if layer.inputs % size:
            fitting = [str(other) for other in (256, 128, 64, 32, 16) if layer.inputs % other == 0]
            raise UsageError(
                f"group_size {size} does not divide the {layer.inputs} input columns of {layer.name}; sizes that fit:"
                f" {', '.join([*fitting, '-1'])}"
            )


def groups_of(spec: QuantizationSpec, inputs: int) -> int:
    """Return how many scales a row of so many weights has."""
    return 1 if spec.group_size in (None, -1) else -(-inputs // int(spec.group_size or 1))


def stored_bytes(spec: QuantizationSpec, layer: LinearShape, *, dense: str = "bfloat16") -> int:
    """Return the bytes of a layer's weight in the spec's format, as the checkpoint holds it; `dense` is the scales' type."""
    outputs, inputs, weights = layer.outputs, layer.inputs, layer.weights
    if not spec.is_quantized:
        return weights * DENSE_BITS[spec.weights_dtype] // 8
    if spec.format == "bitsandbytes":
        return _bitsandbytes(spec, layer)
    scale = DENSE_BITS[dense] // 8
    groups = groups_of(spec, inputs)
    if spec.format == "torchao" or spec.weights_dtype.startswith("float8"):
        return weights + outputs * groups * scale
    bits, zeros = spec.weights_bits, 0
    if spec.format == "gptq":
        words = -(-inputs * bits // 32) * 4 * outputs
        return words + groups * -(-outputs * bits // 32) * 4 + groups * outputs * 2 + inputs * 4
    if spec.format == "awq":
        words = inputs * -(-outputs * bits // 32) * 4
        return words + groups * -(-outputs * bits // 32) * 4 + groups * outputs * 2
    words = weights if bits == 8 else outputs * -(-inputs * bits // 32) * 4
    if spec.symmetric is False:
        zeros = outputs * groups if bits == 8 else -(-outputs * bits // 32) * 4 * groups
    return words + zeros + outputs * groups * scale + 16


def held_bytes(spec: QuantizationSpec, layer: LinearShape, *, held: str) -> int:
    """Return the bytes of a frozen layer's weight while adapters are trained on it; `held` is the data type of dense ones."""
    wide = DENSE_BITS[held] // 8
    if not spec.is_quantized:
        return layer.weights * wide
    if spec.format in UNPACKED:
        scales = layer.outputs * groups_of(spec, layer.inputs)
        return layer.weights * wide + scales * (2 + (spec.symmetric is False))
    return stored_bytes(spec, layer)


def _bitsandbytes(spec: QuantizationSpec, layer: LinearShape) -> int:
    if spec.weights_bits == 8:
        return layer.weights + 4 * layer.outputs
    blocks = -(-layer.weights // BLOCK)
    scales = 4 * blocks
    if spec.double_quant:
        scales = blocks + 4 * -(-blocks // NESTED) + 4 + 4 * NESTED  # codes, their scales, an offset, a table of 256
    return -(-layer.weights // 2) + scales + 4 * 16  # two codes a byte, and the grid's table of 16
