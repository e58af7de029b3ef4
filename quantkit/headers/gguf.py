"""What does a GGUF file say of itself, read without the gguf package?

Only the key/value section's beginning is walked, up to architecture and file type; the vocabulary that follows is skipped.
Layout: ggml's `docs/gguf.md`.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from quantkit.errors import UsageError

MAGIC = b"GGUF"
MAX_ENTRIES = 65_536
MAX_TEXT_BYTES = 16 * 1024 * 1024
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
FILE_TYPES = {
    0: ("float32", 32), 1: ("float16", 16), 2: ("q4_0", 4), 3: ("q4_1", 4), 7: ("q8_0", 8), 8: ("q5_0", 5), 9: ("q5_1", 5),
    10: ("q2_k", 2), 11: ("q3_k_s", 3), 12: ("q3_k_m", 3), 13: ("q3_k_l", 3), 14: ("q4_k_s", 4), 15: ("q4_k_m", 4),
    16: ("q5_k_s", 5), 17: ("q5_k_m", 5), 18: ("q6_k", 6), 19: ("iq2_xxs", 2), 20: ("iq2_xs", 2), 21: ("q2_k_s", 2),
    22: ("iq3_xs", 3), 23: ("iq3_xxs", 3), 24: ("iq1_s", 1), 25: ("iq4_nl", 4), 26: ("iq3_s", 3), 27: ("iq3_m", 3),
    28: ("iq2_s", 2), 29: ("iq2_m", 2), 30: ("iq4_xs", 4), 31: ("iq1_m", 1), 32: ("bfloat16", 16), 36: ("tq1_0", 1),
    37: ("tq2_0", 2), 38: ("mxfp4", 4),
}  # fmt: skip
"""`general.file_type` → the type most weights have, and its bits (llama.cpp, `enum llama_ftype`)."""


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """What the header of one GGUF file says; None where it is silent or the number is not known."""

    version: int
    architecture: str | None
    weights_dtype: str | None
    weights_bits: int | None


def read_gguf(path: Path) -> GgufFacts:
    """Read the header of a GGUF file.

    Raises:
        UsageError: the file does not begin as GGUF, is cut short, or makes claims no real file makes.
    """
    found: dict[str, Any] = {}
    try:
        with path.open("rb") as stream:
            if stream.read(4) != MAGIC:
                raise UsageError(f"{path}: does not begin with {MAGIC.decode()}; it is no GGUF file")
            version = _number(stream, "I")
            if version not in (2, 3):
                raise UsageError(f"{path}: GGUF version {version}; 2 and 3 are read")
            _number(stream, "Q")
            entries = _number(stream, "Q")
            if entries > MAX_ENTRIES:
                raise UsageError(f"{path}: claims {entries} metadata entries; at most {MAX_ENTRIES} are read")
            for _ in range(entries):
                key = _text(stream)
                found[key] = _value(stream, _number(stream, "I"))
                if {"general.architecture", "general.file_type"} <= set(found):
                    break
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (EOFError, KeyError, ValueError, OverflowError) as error:
        raise UsageError(f"{path}: the GGUF header is damaged or cut short: {error or 'end of file'}") from None
    dtype, bits = FILE_TYPES.get(found.get("general.file_type", -1), (None, None))
    architecture = found.get("general.architecture")
    return GgufFacts(version, architecture if isinstance(architecture, str) else None, dtype, bits)


def _number(stream: BinaryIO, letter: str) -> Any:
    size = struct.calcsize("<" + letter)
    raw = stream.read(size)
    if len(raw) != size:
        raise EOFError
    return struct.unpack("<" + letter, raw)[0]


def _text(stream: BinaryIO) -> str:
    length = _number(stream, "Q")
    if length > MAX_TEXT_BYTES:
        raise EOFError(f"a text of {length} bytes")
    raw = stream.read(length)
    if len(raw) != length:
        raise EOFError
    return raw.decode("utf-8")


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == TEXT:
        return _text(stream)
    if kind != ARRAY:
        return _number(stream, SCALARS[kind])
    item, count = _number(stream, "I"), _number(stream, "Q")
    if item == TEXT:
        for _ in range(count):
            _text(stream)
    else:
        stream.seek(count * struct.calcsize("<" + SCALARS[item]), 1)
    return None
