"""What do the saved weights hold?

`QuantizationSpec` states it in plain data; `quantkit.measure` reads the same facts off a model or a folder, and the two
must be equal before anything is written. The alternative, a free-form dictionary of what was *asked for*, is how 4-bit
models come to be evaluated as 16-bit ones.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Self, TypeVar

from quantkit.errors import UsageError, did_you_mean


class QuantMethod(StrEnum):
    """The methods that ship with quantkit; plugins add names of their own, so specs carry plain strings."""

    NO_QUANT = "NoQuant"
    INT8 = "INT8"
    BNB4BIT = "BNB4BIT"
    QLORA = "QLORA"
    GPTQ = "GPTQ"
    AWQ = "AWQ"
    HQQ = "HQQ"
    SMOOTH_QUANT = "SmoothQuant"
    QUAROT = "QuaRot"
    ADA_ROUND = "AdaRound"
    BRECQ = "BRECQ"


T = TypeVar("T")

DENSE_BITS = {"bfloat16": 16, "float16": 16, "float32": 32}
"""Storage widths in bits of the unquantized data types."""

DTYPE_TAGS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""How data types are written in names."""

METHOD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]{0,31}")
NAME_TAG = re.compile(r"(?!(?:w|g|a|kv)\d+$|gch$|head|merged)[a-z][a-z0-9]{0,15}")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationSpec:
    """What the weights of a model's linear layers are, independent of how they got so.

    Raises:
        UsageError: a value is out of range, or two fields contradict each other.
    """

    method: str
    """Name of the method whose weights these are, e.g. `QLORA`; `NoQuant` for 16- or 32-bit weights."""
    weights_bits: int
    """Bits of one stored weight code, without scales: 2, 3, 4, 8, 16 or 32."""
    weights_dtype: str
    """Grid or data type of a weight: `bfloat16`, `float16`, `float32`, `nf4`, `fp4`, `int4`, `int8`, `float8_e4m3fn`, …"""
    format: str = "dense"
    """Storage format on disk: `dense`, `bitsandbytes`, `compressed-tensors`, `gptq`, `awq`, …"""
    group_size: int | None = None
    """Input columns that share one scale; -1: one scale per output row; None: the method offers no such choice."""
    symmetric: bool | None = None
    """Whether the grid is symmetric about zero (no zero point); None where the format has no such notion."""
    double_quant: bool = False
    """Whether the scales are themselves quantized (QLoRA, arXiv:2305.14314, section 3)."""
    activations_bits: int | None = None
    """Bits of the activations that enter the layers; None: they are not quantized."""
    kv_cache_bits: int | None = None
    """Bits of the key/value cache; None: it is not quantized."""
    lm_head_dtype: str = "bfloat16"
    """Data type of the output head's weights."""
    tags: tuple[str, ...] = ()
    """Further tags that the name carries, in order: what tells two variants of one method apart, e.g. `fp4`, `dq`."""
    extras: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    """Facts about the weights that only this method has, as plain values."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", tuple(self.tags))
        object.__setattr__(self, "extras", dict(self.extras))
        self._require(bool(METHOD_NAME.fullmatch(self.method)), "method", "letters and digits, at most 32")
        self._require(self.weights_bits in (1, 2, 3, 4, 5, 6, 8, 16, 32), "weights_bits", "1 to 6, 8, 16 or 32")
        self._require(
            self.group_size is None or self.group_size == -1 or self.group_size > 0,
            "group_size",
            "a positive number, -1 (one group per row) or null",
        )
        for name in ("activations_bits", "kv_cache_bits"):
            self._require(getattr(self, name) in (None, 2, 3, 4, 8, 16), name, "2, 3, 4, 8, 16 or null")
        for tag in self.tags:
            self._require(bool(NAME_TAG.fullmatch(tag)), "tags", "lower-case words that are no other tag")
        dense_bits = DENSE_BITS.get(self.weights_dtype)
        if dense_bits is not None and dense_bits != self.weights_bits:
            raise UsageError(
                f"quantization.weights_bits is {self.weights_bits} but weights_dtype {self.weights_dtype!r}"
                f" has {dense_bits}; one of the two is wrong"
            )

    def _require(self, holds: bool, name: str, wanted: str) -> None:
        if not holds:
            raise UsageError(f"quantization.{name} is {getattr(self, name)!r}; it must be {wanted}")

    @property
    def is_quantized(self) -> bool:
        """Whether the weights are stored on a quantization grid rather than in a dense data type."""
        return self.weights_dtype not in DENSE_BITS

    @classmethod
    def dense(cls, dtype: str, *, method: str = QuantMethod.NO_QUANT, lm_head_dtype: str | None = None) -> Self:
        """Return the spec of unquantized weights of this data type."""
        if dtype not in DENSE_BITS:
            raise UsageError(f"{dtype!r} is no dense data type; known: {', '.join(DENSE_BITS)}")
        return cls(method=method, weights_bits=DENSE_BITS[dtype], weights_dtype=dtype, lm_head_dtype=lm_head_dtype or dtype)

    def with_changes(self, **changes: Any) -> Self:
        """Return a copy with these fields replaced."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `from_dict` is its inverse."""
        data = asdict(self)
        data["tags"] = list(self.tags)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read a spec back from JSON data.

        Raises:
            UsageError: a key is unknown or missing, or a value has the wrong type or range.
        """
        return read_fields(cls, data, where="quantization")


def read_fields(cls: type[T], data: Any, *, where: str) -> T:
    """Build a dataclass from JSON data whose keys and types must be the class's own.

    Raises:
        UsageError: names `where` and the key that is unknown, missing or of the wrong type.
    """
    from quantkit.options import check_value

    if not isinstance(data, Mapping):
        raise UsageError(f"{where} is {type(data).__name__}, not an object")
    known = {item.name for item in fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise UsageError(f"{where} has the unknown key {key!r}.{did_you_mean(str(key), known)}")
    values = {key: check_value(cls, key, value, where=where, strict=True) for key, value in data.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise UsageError(f"{where} is incomplete: {error}") from None
