"""Which settings has a run that takes them from a file, and some from elsewhere? A choice replaces what it contradicts."""

from collections.abc import Mapping
from typing import Any

from quantkit.aliases import TRANSLATED, canonical
from quantkit.config import SETTINGS


def with_choices(values: Mapping[str, Any], choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with `choices` in their place, whatever names either uses; a newly chosen method drops the old options.

    >>> with_choices({"base_model": "m", "quant_bits": 4, "lora_r": 8}, {"quant_method": "INT8", "lora_rank": 16})
    {'base_model': 'm', 'quant_method': 'INT8', 'lora_rank': 16}
    """
    if isinstance(nested := values.get("method_options"), Mapping):
        values = {key: value for key, value in values.items() if key != "method_options"} | dict(nested)
    decided = {decides(key) for key in choices}
    new_method = "quant_method" in decided and not _names_method(values, choices)

    def is_kept(key: str) -> bool:
        is_option = key == "method_options" or decides(key) not in SETTINGS
        return decides(key) not in decided and not (is_option and new_method)

    return {key: value for key, value in values.items() if is_kept(key)} | dict(choices)


def decides(spelling: str) -> str:
    """Return the setting or option that is decided under this name: `use_dora` decides `peft_config`."""
    name = canonical(spelling)
    return TRANSLATED.get(name, name)


def _names_method(values: Mapping[str, Any], choices: Mapping[str, Any]) -> bool:
    """Whether the chosen method is the one that `values` name already."""
    named = [
        {str(item).lower() for key, item in each.items() if canonical(key) == "quant_method"} for each in (values, choices)
    ]
    return bool(named[0]) and named[0] == named[1]
