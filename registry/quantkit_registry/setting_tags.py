"""How does a name carry a setting that it has no tag of its own for, such as the seed?

As one more lower-case word among the tags, `seed1`, `lr2em4`, made from the setting's value and never typed, so that it cannot
say anything else than the run did. A free label for each run would read better and be wrong after the first copied line.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

LONGEST = 16
"""Characters of a tag."""
WORDS = {
    "learning_rate": "lr",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "on",
    "init_lora_weights": "start",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "per_device_train_batch_size": "batch",
    "gradient_accumulation_steps": "accu",
    "lr_scheduler_type": "course",
    "warmup_steps": "warmup",
    "weight_decay": "decay",
    "max_grad_norm": "clip",
    "trunc_train": "rows",
    "max_length": "length",
    "system_prompt": "prompt",
    "compute_dtype": "in",
}
"""Setting to the word its tag begins with; other settings give their own name."""
RESERVED = re.compile(r"(?:w|g|a|kv)\d+$|gch$|head|merged")


def setting_tags(named: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one tag per setting, in the order given."""
    return tuple(setting_tag(name, value) for name, value in named.items())


def setting_tag(name: str, value: Any) -> str:
    """Return the tag of one setting; where the value cannot be written in so few characters, the first digits of its hash.

    >>> setting_tag("seed", 1), setting_tag("learning_rate", 2e-4), setting_tag("lora_alpha", 32.0)
    ('seed1', 'lr2em4', 'alpha32')
    >>> setting_tag("target_modules", ["attention"]), setting_tag("target_modules", ["q_proj", "k_proj", "v_proj"])
    ('onattention', 'onb43e7c')
    """
    word = WORDS.get(name) or re.sub(r"[^a-z]", "", name.lower())
    text = _text(value)
    digest = hashlib.sha256(json.dumps(_plain(value), sort_keys=True, default=str).encode()).hexdigest()[:6]
    if not text or len(word) + len(text) > LONGEST:
        text = digest
    tag = f"{word[: LONGEST - len(text)]}{text}"
    return tag if not RESERVED.match(tag) else f"x{tag}"[:LONGEST]


def _text(value: Any) -> str:
    """Return a value in lower-case letters and digits; empty where that would not tell it from others."""
    if value is None or isinstance(value, bool):
        return {None: "auto", True: "on", False: "off"}[value]
    if isinstance(value, int | float):
        number = Decimal(repr(value)).normalize()
        written = str(int(number)) if number == int(number) and abs(number) < 10**6 else f"{number:e}"
        return written.replace("e-", "em").replace("e+", "e").replace("-", "m").replace(".", "p")
    if isinstance(value, str):
        return value.lower() if re.fullmatch(r"[A-Za-z0-9]+", value) else ""
    if isinstance(value, list | tuple) and len(value) == 1:
        return _text(value[0])
    return ""


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
