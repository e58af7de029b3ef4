"""Under which other names do people already type a setting? Tables of them, and the one function that applies them.

The names come from transformers, TRL, PEFT, bitsandbytes, the finance study's run files and the constants of training
scripts. Upper and lower case, hyphens and underscores are the same. Two names for one setting must agree. The alternative,
a converter per file format, would give one key two meanings.
"""

from collections.abc import Mapping, Set
from dataclasses import fields
from difflib import get_close_matches
from pathlib import PurePath
from typing import Any

from quantkit.errors import PluginError, UsageError, did_you_mean
from quantkit.spec import QuantMethod

RENAMED = {
    "model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "base_model": "model_name_or_path",
    "dataset": "dataset_name",
    "dataset_choice": "dataset_name",
    "dataset_path": "dataset_name",
    "eval_dataset": "eval_dataset_name",
    "max_seq_length": "max_length",
    "lora_rank": "lora_r",
    "lora_target_modules": "target_modules",
    "peft_use_rslora": "use_rslora",
    "peft_use_dora": "use_dora",
    "num_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "warmup_ratio": "warmup_steps",
    "merge_policy": "merge",
    "bnb_4bit_quant_type": "quant_type",
    "bnb_4bit_use_double_quant": "double_quant",
    "bnb_4bit_compute_dtype": "compute_dtype",
    "bnb_4bit_quant_storage": "quant_storage",
}
"""Another name → the setting, or the option of a method, that it means."""

TRANSLATED = {
    "use_dora": "peft_config",
    "quant_bits": "quant_method",
    "load_in_4bit": "quant_method",
    "load_in_8bit": "quant_method",
    "keep_lm_head_fp16": "lm_head_dtype",
}
"""Names whose value is not the setting's value but decides it: true → DoRa; 4 → QLORA or BNB4BIT; 8 → INT8; true → float16."""

NF4_RECIPE = {"quant_type": "nf4", "double_quant": True}
"""What 4 bit means where nothing else is said, and what QLORA is by definition; other values make it BNB4BIT."""

BITS_METHODS: dict[int, tuple[str, ...]] = {
    4: (QuantMethod.QLORA, QuantMethod.BNB4BIT),
    8: (QuantMethod.INT8,),
    16: (QuantMethod.NO_QUANT,),
}
"""quant_bits → the methods that it may stand beside; alone it means the first (4 bit with DoRa, VeRa or fp4: the second)."""

PASSED_ON = "seed"
"""The one setting that a method may have an option of the same name for: it gets the run's value."""
PLAIN = (str, int, float, type(None), list, tuple, dict, PurePath)
Given = dict[str, tuple[str, Any]]
"""Canonical name → the spelling found and its value."""


def canonical(spelling: str) -> str:
    """Return the setting, translated name or option that a spelling means.

    >>> canonical("DATASET_CHOICE"), canonical("bnb-4bit-quant-type"), canonical("use_dora")
    ('dataset_name', 'quant_type', 'use_dora')
    """
    name = str(spelling).lower().replace("-", "_")
    return RENAMED.get(name, name)


def resolve(values: Mapping[str, Any], settings: Set[str], *, methods: Any = None) -> dict[str, Any]:
    """Return setting → value; `settings` are the names of all, `methods` (default: the installed ones) knows their options.

    Raises:
        UsageError: a key is unknown, two keys contradict each other, or the method does not exist.
    """
    methods = methods or _installed()
    given: Given = {}
    for spelling, value in values.items():
        name = canonical(spelling)
        if name in given and given[name][1] != value:
            other, its_value = given[name]
            raise UsageError(f"{other}={its_value!r} and {spelling}={value!r} both set {name}; keep one")
        given[name] = (str(spelling), value)
    _apply_dora(given)
    _apply_bits(given)
    _apply_head(given)
    method = methods.info(given.pop("quant_method", ("", QuantMethod.NO_QUANT))[1]).name
    nested = given.pop("method_options", ("", None))[1] or {}
    if not isinstance(nested, Mapping):
        raise UsageError(f"method_options is {nested!r}; it must map option names to values")
    flat = {name: item for name, item in given.items() if name not in settings}
    options = _options(flat, nested, method, methods, settings, seed=given.get(PASSED_ON))
    found = {name: value for name, (_, value) in given.items() if name in settings}
    if "model_name_or_path" not in found:
        raise UsageError("no model is named; set model_name_or_path (MODEL, base_model) to a folder or a hub id")
    return found | {"quant_method": method, "method_options": options}


def _installed() -> Any:
    from quantkit.methods import installed_methods

    return installed_methods()


def _options(
    flat: Given, nested: Mapping[str, Any], method: str, methods: Any, settings: Set[str], *, seed: tuple[str, Any] | None
) -> dict[str, Any]:
    """Return the method's options, converted; every other name is an error that says whose option it is, if anybody's.

    A method with an option `seed` gets the run's: one word, one number. Other names of run settings are no options.
    """
    own = [item.name for item in fields(methods.info(method).options)]
    if shared := settings & set(own) - {PASSED_ON}:
        raise PluginError(f"{methods.source(method)}: the options {', '.join(sorted(shared))} have the names of run settings")
    values: dict[str, Any] = {PASSED_ON: seed[1]} if PASSED_ON in own and seed is not None else {}
    for name, (spelling, value) in {**{str(key): (f"method_options.{key}", nested[key]) for key in nested}, **flat}.items():
        if name in nested and nested[name] != value:
            raise UsageError(f"{spelling}={value!r} and method_options.{name}={nested[name]!r} contradict each other; keep one")
        if name in own:
            values[name] = value
        elif method != QuantMethod.QLORA or NF4_RECIPE.get(name) != value:
            owners = [other for other in methods.names if name in {item.name for item in fields(methods.info(other).options)}]
            if owners:
                raise UsageError(f"{spelling}={value!r} is no option of {method} but of {', '.join(owners)}")
            known = [*settings, *RENAMED, *TRANSLATED, *own]
            raise UsageError(f"{spelling!r} is no setting and no option of {method}.{did_you_mean(name, known)}")
    checked = methods.options(method, values)
    return {name: getattr(checked, name) for name in values}


def _apply_dora(given: Given) -> None:
    spelling, value = given.pop("use_dora", ("", False))
    kind = str(given.get("peft_config", ("", "LoRa"))[1])
    if _is_on(spelling, value):
        if kind.lower() not in ("lora", "dora"):
            raise UsageError(f"{spelling}={value!r} contradicts {given['peft_config'][0]}={kind!r}; keep one")
        given["peft_config"] = (spelling, "DoRa")
    elif spelling and kind.lower() == "dora":
        raise UsageError(f"{spelling}={value!r} contradicts {given['peft_config'][0]}={kind!r}; keep one")


def _apply_bits(given: Given) -> None:
    asked: dict[int, str] = {}
    if "quant_bits" in given:
        spelling, value = given.pop("quant_bits")
        if value is not None and str(value) not in ("4", "8", "16"):
            raise UsageError(f"{spelling} is {value!r}; it must be 4, 8 or 16")
        asked |= {} if value is None else {int(value): f"{spelling}={value!r}"}
    for name, bits in (("load_in_4bit", 4), ("load_in_8bit", 8)):
        spelling, value = given.pop(name, (name, False))
        if _is_on(spelling, value):
            asked[bits] = f"{spelling}={value!r}"
    if len(asked) > 1:
        raise UsageError(f"{' and '.join(asked.values())} contradict each other; keep one")
    for bits, said in asked.items():
        if "quant_method" in given:
            spelling, method = given["quant_method"]
            if str(method).lower() not in [name.lower() for name in BITS_METHODS[bits]]:
                raise UsageError(f"{said} contradicts {spelling}={method!r}; it asks for {' or '.join(BITS_METHODS[bits])}")
            continue
        given["quant_method"] = (said, BITS_METHODS[bits][0])
        if bits == 4 and not _is_qlora(given):
            given["quant_method"] = (said, QuantMethod.BNB4BIT)
            for name, value in NF4_RECIPE.items():
                given.setdefault(name, (said, value))


def _is_qlora(given: Given) -> bool:
    kind = str(given.get("peft_config", ("", "LoRa"))[1])
    return kind.lower() == "lora" and all(given.get(name, ("", value))[1] == value for name, value in NF4_RECIPE.items())


def _apply_head(given: Given) -> None:
    spelling, value = given.pop("keep_lm_head_fp16", ("", False))
    if _is_on(spelling, value):
        other, dtype = given.get("lm_head_dtype", (spelling, None))
        if dtype not in (None, "float16", "fp16"):
            raise UsageError(f"{spelling}={value!r} contradicts {other}={dtype!r}; keep one")
        given["lm_head_dtype"] = (spelling, "float16")


def _is_on(spelling: str, value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    if str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    raise UsageError(f"{spelling} is {value!r}; it must be true or false")


def script_settings(namespace: Mapping[str, Any], settings: Set[str], *, where: str, methods: Any = None) -> dict[str, Any]:
    """Pick the settings out of a script's globals: names, as they are spelt, to plain values; `settings` are the names of all.

    Names that start with an underscore, and what is no plain value (modules, classes, functions), are the script's own.

    Raises:
        UsageError: a lower-case name looks like a misspelt setting. Unknown UPPER_CASE ones are left for `resolve` to refuse.
    """
    methods = methods or _installed()
    options = {item.name for name in methods.names for item in fields(methods.info(name).options)}
    known = {*settings, *RENAMED, *TRANSLATED, *options}
    picked = {}
    for spelling, value in namespace.items():
        if spelling.startswith("_") or not isinstance(value, PLAIN):
            continue
        if spelling.isupper() or spelling.lower() in known:
            picked[spelling] = value
        elif close := get_close_matches(spelling.lower(), known, n=1, cutoff=0.7):
            raise UsageError(
                f"{where}: {spelling!r} is no setting. Did you mean {close[0]!r}? A name of the script's own may start with _"
            )
    return picked
