"""How do text and loose values become a dataclass of settings?

Values from a script's constants, a JSON, TOML or YAML file or a `key=value` flag pass through the same door: unknown keys
are errors with a suggestion, types are converted by pydantic from the dataclass's own annotations. Hand-written
converters per setting would drift apart from the annotations.
"""

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from quantkit.errors import UsageError, did_you_mean

T = TypeVar("T")


@cache
def _adapter(cls: type[Any], name: str) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(get_type_hints(cls)[name])


def check_value(cls: type[Any], name: str, value: Any, *, where: str, strict: bool = False) -> Any:
    """Convert one value to the annotated type of field `name`; with `strict`, JSON types only, nothing is converted.

    Raises:
        UsageError: the value does not fit; the text names `where`, the field, the value and what is wanted.
    """
    from pydantic import ValidationError

    adapter = _adapter(cls, name)  # type: ignore[arg-type]
    try:
        if strict:
            import json

            return adapter.validate_json(json.dumps(value), strict=True)
        return adapter.validate_python(_choice(get_type_hints(cls)[name], value))
    except ValidationError as error:
        details = "; ".join(dict.fromkeys(item["msg"] for item in error.errors()))
        if isinstance(value, list) and not any(isinstance(step, int) for item in error.errors() for step in item["loc"]):
            details = "one value is wanted"
        raise UsageError(f"{where}: {name} is {value!r}: {details}") from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {name} is {value!r}: {error}") from None


def _choice(hint: Any, value: Any) -> Any:
    """Return the `Literal` number, or the None, that a text spells, as flags and files have it; anything else as it is."""
    if not isinstance(value, str):
        return value
    hints = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    choices = [choice for item in hints if get_origin(item) is Literal for choice in get_args(item)]
    if NoneType in hints and str not in hints and value.lower() == "none":
        return None
    return next((choice for choice in choices if str(choice) == value), value)


def build_options(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Return `cls(**values)` with every value checked and converted by its field's annotation.

    Raises:
        UsageError: a key is unknown, a value does not fit, or a required one is missing.
    """
    known = [item.name for item in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            listed = ", ".join(known) or "none"
            raise UsageError(f"{where}: unknown option {key!r}.{did_you_mean(key, known)} Known: {listed}.")
    checked = {key: check_value(cls, key, value, where=where) for key, value in values.items()}
    try:
        return cls(**checked)
    except TypeError as error:
        raise UsageError(f"{where}: {error}") from None
