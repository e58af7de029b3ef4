"""How are tensors read and written one at a time, so that a file larger than memory passes through?

Reading goes by position and plain `read`: with a memory map, as `safetensors` uses, every page ever touched counts as the
process's memory, and a shard read from end to end has been held whole. Writing states the header first, from names, types
and shapes known beforehand, then takes the tensors in order; `save_file` wants all of them in memory at once.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from quantkit.errors import UsageError, VerificationError
from quantkit.files import write_json
from quantkit.headers import StoredTensor
from quantkit.headers.tensorfiles import BITS_OF_DTYPE

if TYPE_CHECKING:
    from torch import Tensor

TORCH_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "F16": "float16",
    "BF16": "bfloat16", "F32": "float32", "F64": "float64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
NAMES = {torch_name: name for name, torch_name in TORCH_DTYPES.items()}
FLOATS = ("F16", "BF16", "F32", "F64")
"""Types that are cast to the merged model's data type; the others pass through."""
CHUNK_BYTES = 4 * 1024 * 1024
"""Bytes of a dense tensor that are read, cast and written at once."""


def read_tensor(stored: StoredTensor, rows: slice | None = None) -> "Tensor":
    """Return one tensor of a file, or these rows of it (the first axis), on the CPU.

    Raises:
        UsageError: the type is one that torch does not know, or the file ends early.
    """
    import torch

    if stored.dtype not in TORCH_DTYPES:
        raise UsageError(f"{stored.file}: tensors of type {stored.dtype} cannot be read here")
    start, shape = stored.start, stored.shape
    if rows is not None:
        row_bytes = stored.size_bytes // shape[0]
        start, shape = start + rows.start * row_bytes, (rows.stop - rows.start, *shape[1:])
    tensor = torch.empty(shape, dtype=getattr(torch, TORCH_DTYPES[stored.dtype]))
    view = _view(tensor)
    with stored.file.open("rb", buffering=0) as stream:
        stream.seek(start)
        done = 0
        while done < len(view):
            got = stream.readinto(view[done:])
            if not got:
                raise UsageError(f"{stored.file}: ends {len(view) - done} bytes early; the file was cut short")
            done += got
    return tensor


def row_chunks(stored: StoredTensor, chunk_bytes: int = CHUNK_BYTES) -> Iterator["Tensor"]:
    """Yield a tensor in pieces of whole rows, in order; one without axes as it is."""
    if not stored.shape or stored.size_bytes <= chunk_bytes:
        yield read_tensor(stored)
        return
    step = max(1, chunk_bytes * stored.shape[0] // stored.size_bytes)
    for start in range(0, stored.shape[0], step):
        yield read_tensor(stored, slice(start, min(start + step, stored.shape[0])))


def all_finite(values: "Tensor") -> bool:
    """Whether no value is infinite or NaN; looks at the extremes, which costs a fifth of looking at each value."""
    import torch

    if not values.numel():
        return True
    low, high = torch.aminmax(values)
    return bool(low.isfinite() & high.isfinite())


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor that will be written: `dtype` as safetensors spells it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Return the bytes its values take."""
        count = 1
        for size in self.shape:
            count *= size
        return count * BITS_OF_DTYPE[self.dtype] // 8


class ShardWriter:
    """Writes `model.safetensors`, or shards with an index, tensor by tensor in the order of `entries`.

    Used as a context manager inside `quantkit.files.new_folder`, which makes the files durable and visible.
    """

    def __init__(
        self, folder: Path, entries: Sequence[Entry], *, max_shard_bytes: int, metadata: Mapping[str, str] | None = None
    ) -> None:
        self._folder = folder
        self._metadata = {"format": "pt", **(metadata or {})}
        self._shards = shards_of(entries, max_shard_bytes)
        self._names = [
            "model.safetensors" if len(self._shards) == 1 else f"model-{number:05d}-of-{len(self._shards):05d}.safetensors"
            for number in range(1, len(self._shards) + 1)
        ]
        self._order = iter([(number, entry) for number, shard in enumerate(self._shards) for entry in shard])
        self._open: BinaryIO | None = None
        self._number = -1
        self.written_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._open is not None:
            self._open.close()
        if kind is None:
            self._finish()

    def write(self, name: str, pieces: Iterable["Tensor"]) -> None:
        """Write one tensor, given in pieces.

        Raises:
            VerificationError: it is not the next one that was announced, or has another type or size.
        """
        number, entry = next(self._order, (-1, None))
        if entry is None or entry.name != name:
            raise VerificationError(f"{name} was written where {entry.name if entry else 'nothing'} was announced")
        if number != self._number:
            self._start(number)
        left = entry.size_bytes
        for piece in pieces:
            data = _bytes_of(piece, entry)
            left -= len(data)
            if left < 0:
                break
            write_all(self._stream, data)
            self.written_bytes += len(data)
        if left:
            raise VerificationError(f"{name} has {entry.size_bytes - left} bytes where {entry.size_bytes} were announced")

    @property
    def _stream(self) -> BinaryIO:
        assert self._open is not None
        return self._open

    def _start(self, number: int) -> None:
        if self._open is not None:
            self._open.close()
        self._number = number
        self._open = (self._folder / self._names[number]).open("wb", buffering=0)
        write_all(self._open, header_bytes(self._shards[number], self._metadata))

    def _finish(self) -> None:
        left = next(self._order, None)
        if left is not None:
            raise VerificationError(f"{left[1].name} was announced and never written")
        if len(self._shards) > 1:
            weight_map = {entry.name: name for name, shard in zip(self._names, self._shards, strict=True) for entry in shard}
            total = sum(entry.size_bytes for shard in self._shards for entry in shard)
            write_json(
                self._folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
            )


def write_all(stream: BinaryIO, data: bytes | memoryview) -> None:
    """Write all bytes to an unbuffered file; one call takes fewer where the disk is nearly full, and 2 GiB at most."""
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) :]


def shards_of(entries: Sequence[Entry], max_shard_bytes: int) -> list[list[Entry]]:
    """Return the entries, in their order, cut into files of at most this many bytes; a larger tensor has a file to itself."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.size_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.size_bytes
    return shards


def header_bytes(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    """Return length and header of a safetensors file that holds these tensors one after the other."""
    data: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for entry in entries:
        end = position + entry.size_bytes
        data[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(data, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _bytes_of(piece: "Tensor", entry: Entry) -> memoryview:
    if NAMES.get(str(piece.dtype).removeprefix("torch.")) != entry.dtype:
        raise VerificationError(f"{entry.name} is {piece.dtype} where {entry.dtype} was announced")
    return _view(piece.contiguous())


def _view(tensor: "Tensor") -> memoryview:
    """Return the bytes of a contiguous tensor, to be read or written in place."""
    import torch

    if not tensor.numel():
        return memoryview(bytearray())
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)
