"""How many bytes do a model, its quantized weights and the work on a block take? Counted from shapes, before any are read."""

from dataclasses import dataclass
from typing import Any

from quantkit.errors import UsageError
from quantkit.spec import QuantizationSpec

SCALE_BITS = 16


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of the source, of the largest block with its statistics, and of the result; weights that are quantized."""

    source: int
    block: int
    stored: int
    quantized: int

    @classmethod
    def of(cls, model: Any, spec: QuantizationSpec, ignore: tuple[str, ...], dense_bytes: int) -> "Sizes":
        """Compute them from a model on the `meta` device; a block is counted in float32 with one matrix in² per layer."""
        from quantkit.layers import features, linear_layers
        from quantkit.numerics.capture import find_blocks, matches

        layers = {name: features(layer) for name, layer in linear_layers(model).items() if not matches(name, ignore)}
        total = sum(parameter.numel() for parameter in model.parameters())
        quantized = sum(inputs * outputs for inputs, outputs in layers.values())
        bits = 0
        for name, (inputs, outputs) in layers.items():
            if spec.group_size and spec.group_size > 0 and inputs % spec.group_size:
                raise UsageError(
                    f"group_size {spec.group_size} does not divide the {inputs} input columns of {name}; sizes that fit:"
                    f" {', '.join(str(size) for size in (256, 128, 64, 32, 16) if inputs % size == 0)}, -1; or --ignore {name}"
                    " when quantizing"
                )
            groups = 1 if spec.group_size in (None, -1) else inputs // int(spec.group_size or 1)
            zero_bits = spec.weights_bits if spec.symmetric is False else 0
            words = -(-inputs * spec.weights_bits // 32) * 32 if spec.weights_bits < 8 else inputs * 8
            bits += outputs * words + outputs * groups * (SCALE_BITS + zero_bits)
        prefix = f"{find_blocks(model)[0]}.0."
        block = [size for name, size in layers.items() if name.startswith(prefix)]
        return cls(
            source=total * dense_bytes,
            block=sum(8 * inputs * outputs + 4 * inputs * inputs for inputs, outputs in block),
            stored=bits // 8 + (total - quantized) * dense_bytes,
            quantized=quantized,
        )
