"""What can one witness, the configuration or the tensors, say about quantized weights?

Both witnesses fill the same form, and None means "says nothing about it"; so comparing them is a loop over fields instead
of one comparison per format.
"""

from dataclasses import dataclass, fields

DENSE = "dense"
UNKNOWN = "unknown"
FORMATS = {"bitsandbytes-4bit": "bitsandbytes", "bitsandbytes-8bit": "bitsandbytes"}
"""Kinds whose storage format, the word specs use, is another word."""

NOT_COMPARED = ("kinds", "layout", "columns")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One witness's statement about how the linear layers' weights are stored."""

    kinds: tuple[str, ...]
    """Storage kinds that fit what was seen, the likeliest first."""
    weights_bits: int | None = None
    weights_dtype: str | None = None
    group_size: int | None = None
    """Columns per scale; -1 for one scale per output row."""
    symmetric: bool | None = None
    double_quant: bool | None = None
    activations_bits: int | None = None
    kv_cache_bits: int | None = None
    layout: str | None = None
    """The format's own name for how codes are packed, e.g. `pack-quantized`, `gemm`."""
    columns: int | None = None
    """Input columns of one layer that has a single scale per row: there `group_size` may also be this number."""

    def differences(self, other: "Facts") -> list[tuple[str, object, object]]:
        """Return `(field, mine, theirs)` for each fact on which both speak and disagree."""
        found: list[tuple[str, object, object]] = []
        if not set(self.kinds) & set(other.kinds):
            found.append(("kind", self.kinds[0], other.kinds[0]))
        for name in [item.name for item in fields(self) if item.name not in NOT_COMPARED]:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is not None and theirs is not None and mine != theirs:
                found.append((name, mine, theirs))
        return found
