"""Which values may a setting of a run have, beside its type?

A table of tests with their words, beside `quantkit.config` and not in it, so that the settings can be read as a list. Checks
inside each field's own code, the alternative, word the same refusal in many ways.
"""

import math
from collections.abc import Callable
from typing import Any


def _positive(value: float) -> bool:
    return 0 < value < math.inf


def _not_negative(value: float) -> bool:
    return 0 <= value < math.inf


MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways to spread a model over devices that transformers knows by name."""
RANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "model_name_or_path": (bool, "a folder or a hub id"),
    "trunc_train": (_positive, "a positive number of rows or None"),
    "calib_rows": (_positive, "at least 1"),
    "calib_length": (lambda value: value >= 2, "at least 2 tokens"),
    "max_length": (lambda value: value >= 2, "at least 2 tokens"),
    "lora_r": (lambda value: 1 <= value <= 65536, "between 1 and 65536, or None"),
    "lora_alpha": (_positive, "positive"),
    "lora_dropout": (lambda value: 0 <= value < 1, "a probability below 1"),
    "target_modules": (bool, "at least one layer name or preset"),
    "learning_rate": (_positive, "positive and finite"),
    "num_train_epochs": (_positive, "positive and finite"),
    "max_steps": (lambda value: value == -1 or value > 0, "-1 or a positive number of steps"),
    "per_device_train_batch_size": (_positive, "at least 1"),
    "gradient_accumulation_steps": (_positive, "at least 1"),
    "warmup_steps": (_not_negative, "0 or more"),
    "weight_decay": (_not_negative, "0 or more"),
    "max_grad_norm": (_not_negative, "0 or more"),
    "seed": (lambda value: 0 <= value < 2**32, "between 0 and 4294967295"),
    "logging_steps": (_positive, "at least 1"),
    "save_steps": (_not_negative, "0 or more"),
    "save_total_limit": (_positive, "at least 1"),
    "dataloader_num_workers": (_not_negative, "0 or more"),
    "output_dir": (bool, "a folder"),
    "device_map": (lambda value: value in MAPS or isinstance(value, dict), f"{', '.join(MAPS)}, or module names with devices"),
}
NUMBERS = frozenset(name for name in RANGES if name not in ("model_name_or_path", "target_modules", "output_dir", "device_map"))
