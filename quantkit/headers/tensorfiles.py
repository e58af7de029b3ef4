"""Which tensors stand in a safetensors file or a folder of shards, and where exactly?

The header (8 bytes of length, then JSON) is checked as hostile input: sizes, types, and that the data regions tile the
file without gap or overlap. `safetensors.safe_open` checks the same but needs a framework for types numpy lacks, and names
neither tensor nor remedy in its errors.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError
from quantkit.headers.plain import file_inside, read_object, require_plain

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""
MAX_SMALL_TENSOR_BYTES = 1_000_000
BITS_OF_DTYPE = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file: `dtype` as safetensors spells it, `start` counted in bytes from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    size_bytes: int

    @property
    def elements(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    def read_bytes(self) -> bytes:
        """Return the tensor's bytes; only for small ones.

        Raises:
            UsageError: it is larger than 1 MB.
        """
        if self.size_bytes > MAX_SMALL_TENSOR_BYTES:
            raise UsageError(f"{self.file}: a tensor of {self.size_bytes} bytes stands where a few numbers were expected")
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            return stream.read(self.size_bytes)

    def read_ints(self) -> tuple[int, ...]:
        """Return the values of a small integer tensor."""
        letter = {"U8": "B", "I8": "b", "I16": "h", "U16": "H", "I32": "i", "U32": "I", "I64": "q", "U64": "Q"}.get(self.dtype)
        if letter is None:
            raise UsageError(f"{self.file}: a tensor of type {self.dtype} stands where integers were expected")
        return struct.unpack(f"<{self.elements}{letter}", self.read_bytes())


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of one file by name, and the file's own string metadata."""

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TensorIndex:
    """The tensors of a folder over all its files."""

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    files: tuple[Path, ...]
    size_bytes: int = field(default=0)
    """Bytes of the weight files together."""


def read_header(path: Path) -> Header:
    """Read and check the header of one safetensors file.

    Raises:
        UsageError: the file is no whole safetensors file; the text names the file and what is wrong with which tensor.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if length < 2 or length > size - 8:
                raise UsageError(f"{path}: not a safetensors file, or cut short: {size} bytes, header of {max(length, 0)}")
            if length > MAX_HEADER_BYTES:
                raise UsageError(f"{path}: the header has {length} bytes; at most {MAX_HEADER_BYTES} are read")
            text = stream.read(length)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        data = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: the safetensors header is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path}: the safetensors header is no JSON object")
    require_plain(data, where=f"{path} (header)")
    metadata = data.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UsageError(f"{path}: __metadata__ of the header must map strings to strings")
    begin = 8 + length
    tensors = {name: _tensor(path, name, entry, begin, size) for name, entry in data.items()}
    _require_tiling(path, tensors, begin, size)
    return Header(tensors, metadata)


def read_tensor_index(folder: Path, *, stem: str = "model") -> TensorIndex:
    """Read the headers of `{stem}.safetensors`, or of the shards that `{stem}.safetensors.index.json` names.

    `folder` may also be one `.safetensors` file.

    Raises:
        UsageError: there are no such files, the index leads outside the folder, or index and shards disagree.
    """
    folder = Path(folder)
    if folder.is_file():
        return _joined([folder])
    single = folder / f"{stem}.safetensors"
    index = folder / f"{stem}.safetensors.index.json"
    if single.is_file():
        return _joined([file_inside(folder, single.name, where=str(folder))])
    if index.is_file():
        return _sharded(folder, index)
    found = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if found:
        raise UsageError(
            f"{folder}: the weights are pickled ({', '.join(found[:3])}); opening them can run foreign code."
            " Convert them to safetensors first"
        )
    raise UsageError(f"{folder}: holds neither {single.name} nor {index.name}")


def _sharded(folder: Path, index: Path) -> TensorIndex:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise UsageError(f"{index}: weight_map must map tensor names to file names")
    shards = {name: file_inside(folder, name, where=str(index)) for name in sorted(set(weight_map.values()))}
    joined = _joined(list(shards.values()))
    for tensor, shard in weight_map.items():
        if tensor not in joined.tensors or joined.tensors[tensor].file != shards[shard]:
            raise UsageError(f"{index}: says that {tensor} stands in {shard}, but it does not")
    return joined


def _joined(files: list[Path]) -> TensorIndex:
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    for path in files:
        header = read_header(path)
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise UsageError(f"{path}: the tensor {name} stands in {tensors[name].file.name} too")
            tensors[name] = tensor
        metadata |= header.metadata
    return TensorIndex(tensors, metadata, tuple(files), sum(path.stat().st_size for path in files))


def _tensor(path: Path, name: str, entry: Any, begin: int, size: int) -> StoredTensor:
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise UsageError(f"{where}: the header must give exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS_OF_DTYPE:
        raise UsageError(f"{where}: unknown dtype {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or len(shape) > 16 or not all(_is_size(value) for value in shape):
        raise UsageError(f"{where}: shape {str(shape)[:60]} is no list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(value) for value in offsets):
        raise UsageError(f"{where}: data_offsets {str(offsets)[:60]} are no pair of positions")
    start, end = offsets
    if start > end or begin + end > size:
        raise UsageError(f"{where}: data_offsets {start} to {end} lie outside the file, which ends at {size - begin}")
    bits = math.prod(shape) * BITS_OF_DTYPE[dtype]
    if bits != (end - start) * 8:
        raise UsageError(f"{where}: shape {shape} of {dtype} takes {-(-bits // 8)} bytes, data_offsets give {end - start}")
    return StoredTensor(dtype, tuple(shape), path, begin + start, end - start)


def _require_tiling(path: Path, tensors: Mapping[str, StoredTensor], begin: int, size: int) -> None:
    position = begin
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size_bytes)):
        if tensor.start != position:
            fault = "overlaps the one before it" if tensor.start < position else "leaves a gap before it"
            raise UsageError(f"{path}: tensor {name!r} {fault}")
        position += tensor.size_bytes
    if position != size:
        raise UsageError(f"{path}: {size - position} bytes follow the last tensor")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**56


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError(f"a key stands twice: {_first_twice(name for name, _ in pairs)!r}")
    return data


def _first_twice(names: Iterator[str] | Any) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return str(name)
        seen.add(name)
    return ""
