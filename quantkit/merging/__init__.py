"""How do adapters become part of a model's weights?

`fold_adapters` folds them into the base they were trained against, dequantized. Merging into quantized weights, as PEFT
does, rounds most of a small update away.
"""

from quantkit.merging.fold import fold_adapters

__all__ = ["fold_adapters"]
