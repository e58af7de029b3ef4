"""How do the weights that quantized layers compute with become a dense folder, whatever the model's size?

Tensor by tensor, by the same readers with which merging decodes a base: what is written is, bit for bit, what the layers of the
loaded model multiply with in that data type. Loading the model and asking it to dequantize itself takes memory for all of it,
and some libraries then write another type than they computed in.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.console import progress
from quantkit.errors import VerificationError
from quantkit.merging.dense_folder import copy_companions, write_dense_config
from quantkit.merging.held import HeldTensor, held_tensors
from quantkit.merging.model_facts import read_base_folder
from quantkit.merging.prepared import MAX_SHARD_BYTES
from quantkit.merging.tensorfiles import NAMES, TORCH_DTYPES, Entry, ShardWriter, all_finite
from quantkit.saving import SPARE_BYTES, require_space

if TYPE_CHECKING:
    from torch import Tensor


def write_dense(source: Path, folder: Path, *, dtype: str, trust_remote_code: bool = False) -> dict[str, int]:
    """Write a quantized model folder's weights as dense ones in `dtype` into `folder`; return counts for the record.

    Raises:
        UsageError: the format is one that is not decoded here.
        VerificationError: a tensor is missing, or a value is not finite in `dtype`.
    """
    import torch

    base = read_base_folder(source, trust_remote_code=trust_remote_code)
    head = base.names.get(f"{base.head}.weight", f"{base.head}.weight")
    embeddings = base.names.get(f"{base.embeddings}.weight", f"{base.embeddings}.weight")
    held = held_tensors(base, computed_in=dtype)
    stored = {item.name for item in held}
    items = [item for item in held if not (base.tied and item.name == head and embeddings in stored)]
    entries = [Entry(item.name, _stored_as(item, dtype, base.buffers), item.shape) for item in items]
    require_space(folder, sum(entry.size_bytes for entry in entries) + SPARE_BYTES)
    with (
        torch.no_grad(),
        progress("Dequantizing", len(entries), unit="tensors") as bar,
        ShardWriter(folder, entries, max_shard_bytes=MAX_SHARD_BYTES) as writer,
    ):
        for item, entry in zip(items, entries, strict=True):
            writer.write(entry.name, _pieces(item, entry))
            bar.advance(written_bytes=writer.written_bytes)
    write_dense_config(base, folder, dtype=dtype, tied=base.tied, vocab_size=None)
    copy_companions(base.folder, base.folder, folder)
    decoded = sum(item.decode is not None for item in items)
    return {"tensors": len(items), "dequantized_layers": decoded, "written_bytes": writer.written_bytes}


def _stored_as(item: HeldTensor, dtype: str, buffers: frozenset[str]) -> str:
    """Return the type on disk: what is no float, and buffers, stay as they are."""
    kept = not item.is_float or (item.name in buffers and item.source is not None)
    return item.stored_dtype if kept else NAMES[dtype]


def _pieces(item: HeldTensor, entry: Entry) -> "Iterator[Tensor]":
    import torch

    wanted = getattr(torch, TORCH_DTYPES[entry.dtype])
    for piece in item.pieces():
        cast = piece.to(wanted)
        if cast.is_floating_point() and not all_finite(cast):
            raise VerificationError(f"{entry.name}: holds values that are not finite in {wanted}; nothing was written")
        yield cast
