"""Which tokens does a method calibrate on, and what else may it use while it quantizes?

Calibration is a value with a fingerprint, so that a record can name it and a resumed run can refuse another one. Passing a
list of strings, as most libraries do, leaves rendering, truncation and order to each method.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.errors import UsageError

if TYPE_CHECKING:
    from quantkit.numerics.blockwise import BlockReport


@dataclass(frozen=True, slots=True)
class Calibration:
    """Token ids to calibrate on, without padding."""

    rows: tuple[tuple[int, ...], ...]
    """Each a sequence of at least two token ids; they may differ in length."""
    source: str
    """Where they came from, for people."""

    @property
    def tokens(self) -> int:
        """Return the number of tokens in all rows."""
        return sum(map(len, self.rows))

    @property
    def fingerprint(self) -> str:
        """Return a sha256, hexadecimal, over the rows in their order."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(b" ".join(str(token).encode() for token in row) + b"\n")
        return digest.hexdigest()

    def require(self, tokens: int) -> None:
        """Check that there are at least so many tokens.

        Raises:
            UsageError: names both numbers.
        """
        if self.tokens < tokens:
            raise UsageError(f"calibration from {self.source} has {self.tokens} tokens; at least {tokens} are needed")

    def batches(self, rows_per_batch: int = 8) -> list[dict[str, Any]]:
        """Return model inputs `{"input_ids": [rows, tokens]}`; rows of one length share a batch, so nothing is padded."""
        import torch

        by_length: dict[int, list[tuple[int, ...]]] = {}
        for row in self.rows:
            by_length.setdefault(len(row), []).append(row)
        return [
            {"input_ids": torch.tensor(same[start : start + rows_per_batch])}
            for same in by_length.values()
            for start in range(0, len(same), rows_per_batch)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return what a record keeps of it."""
        return {"source": self.source, "rows": len(self.rows), "tokens": self.tokens, "fingerprint": self.fingerprint}


def _ignore(_: "BlockReport") -> None:
    """Take a block's report and do nothing with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationWork:
    """What `quantize_model` may use besides plan, model and calibration."""

    device: str = "cpu"
    """Where blocks are solved; the model itself may be larger than that device's memory."""
    folder: Path | None = None
    """Where finished blocks are kept, so that a killed run goes on after the last one; None: nowhere."""
    ignore: Sequence[str] = ()
    """Layers that stay dense, as `quantkit.numerics.capture.matches` reads them; the output head always does."""
    identity: str = ""
    """Fingerprint of the model that is quantized; part of what a resumed run must agree on."""
    report: Callable[["BlockReport"], None] = field(default=_ignore)
    """Called after each block."""
