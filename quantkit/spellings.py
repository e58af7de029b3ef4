"""Which spellings of a setting's value mean the same? Those of words, lists, data types and paths, before values are checked.

Other names of a setting are in `quantkit.aliases`.
"""

import json
from typing import Any

from quantkit.errors import UsageError
from quantkit.plan import PEFT_KINDS
from quantkit.ranges import NUMBERS

LISTS = ("target_modules", "modules_to_save", "report_to", "name_settings", "accept_changes")


def loosened(name: str, value: Any) -> Any:
    """Accept the spellings that have one meaning: `"q_proj,v_proj"`, `"none"` trackers, `lora`, `bf16`, a `Path`."""
    if isinstance(value, bool) and name in NUMBERS:
        raise UsageError(f"settings: {name} is {value!r}; it must be a number")
    if name in LISTS and (value is None or isinstance(value, str)):
        words = tuple(word.strip() for word in (value or "").split(",") if word.strip())
        return () if name == "report_to" and words == ("none",) else words
    if name == "init_lora_weights" and value is True:  # PEFT's own default
        return "default"
    if name == "peft_config" and isinstance(value, str):
        return next((kind for kind in PEFT_KINDS if kind.lower() == value.lower()), value)
    if name.endswith("_dtype") and isinstance(value, str):
        word = value.removeprefix("torch.")
        return {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}.get(word, word)
    if name == "device_map" and isinstance(value, str) and value.lstrip().startswith("{"):
        value = _json_object(name, value)
    if name == "resume_from_checkpoint" and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return str(value) if hasattr(value, "__fspath__") else value


def _json_object(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"settings: {name} is {text!r}, which is no JSON object: {error}") from None
