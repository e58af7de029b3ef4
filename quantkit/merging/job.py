"""Which tensors does a merged model have, and what goes into each?

Names, types and shapes are settled before anything is written, the question whether output head and embeddings stay one
tensor first of all: an adapter that trains one of the two parts them, and a merge that does not notice loses its work.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.errors import VerificationError
from quantkit.merging.delta import FolderAdapter
from quantkit.merging.held import HeldTensor
from quantkit.merging.model_facts import BaseFolder
from quantkit.merging.tensorfiles import NAMES, TORCH_DTYPES, Entry, ShardWriter, all_finite, row_chunks
from quantkit.saving import SPARE_BYTES, require_space

if TYPE_CHECKING:
    from torch import Tensor


class MergeJob:
    """The tensors of one merged model: which there are, and what goes into each."""

    def __init__(self, adapter: FolderAdapter, base: BaseFolder, dtype: str, head_dtype: str, held: list[HeldTensor]) -> None:
        self.adapter, self.base, self.changed = adapter, base, 0
        self.saved = {base.names.get(name, name): stored for name, stored in adapter.saved.items()}
        self.targets = {base.names.get(f"{name}.weight", f"{name}.weight"): name for name in adapter.modules}
        self.head, self.embeddings = (
            base.names.get(f"{name}.weight", f"{name}.weight") if name else "" for name in (base.head, base.embeddings)
        )
        self.items = {item.name: item for item in held}
        self.tied = base.tied and not self._parts()
        self._settle_head()
        if missing := sorted({*self.saved, *self.targets} - set(self.items)):
            raise VerificationError(f"{base.folder}: holds no {missing[0]}, which {adapter.folder} changes; shards are missing")
        rows = self.saved[self.embeddings].shape[0] if self.embeddings in self.saved else None
        self.vocab_size = rows if rows and rows != self.items[self.embeddings].shape[0] else None
        wide = {self.head, self.embeddings} if self.tied else {self.head}
        self.entries = [self._entry(item, head_dtype if item.name in wide else dtype) for item in self.items.values()]

    def write(self, folder: Path, *, max_shard_bytes: int, metadata: dict[str, str], progress: bool) -> int:
        """Write every tensor in order; return the bytes written."""
        import torch

        total = sum(entry.size_bytes for entry in self.entries)
        require_space(folder, total + SPARE_BYTES)
        with (
            torch.no_grad(),
            _bar(len(self.entries), show=progress) as advance,
            ShardWriter(folder, self.entries, max_shard_bytes=max_shard_bytes, metadata=metadata) as writer,
        ):
            for entry in self.entries:
                writer.write(entry.name, self._pieces(entry))
                advance(writer.written_bytes)
        if not self.changed and not self.saved:
            raise VerificationError("folding the adapter in changed no weight; it was never trained, or does not fit this base")
        return writer.written_bytes

    def _pieces(self, entry: Entry) -> "Iterator[Tensor]":
        """Yield what is written for a tensor, in its data type, piece by piece."""
        import torch

        wanted = getattr(torch, TORCH_DTYPES[entry.dtype])
        for piece in self._values(entry.name):
            cast = piece.to(wanted)
            if cast.is_floating_point() and not all_finite(cast):
                what = "the base holds values that are not finite" if not all_finite(piece) else f"too large for {wanted}"
                raise VerificationError(f"{entry.name}: {what}; nothing was written")
            yield cast

    def _values(self, name: str) -> "Iterator[Tensor]":
        item = self.items[name]
        if name in self.saved:
            yield from row_chunks(self.saved[name])
        elif name in self.targets:
            module = self.targets[name]
            before = item.value()
            after = self.adapter.folded(module, before, transposed=module in self.base.turned and not item.turned)
            self.changed += not bool(after.equal(before))
            del before
            yield after.T if item.turned else after
        else:
            yield from item.pieces()

    def _parts(self) -> bool:
        """Whether the adapter makes head and embeddings two tensors."""
        trained = {self.head, self.embeddings} & {*self.targets, *self._trained_copies()}
        both = trained == {self.head, self.embeddings} and trained <= set(self.saved)
        return bool(trained) and not (both and _same(self.saved[self.head], self.saved[self.embeddings]))

    def _trained_copies(self) -> set[str]:
        entries = self.adapter.settings.modules_to_save
        return {
            name
            for module, name in ((self.base.head, self.head), (self.base.embeddings, self.embeddings))
            if any(module == entry or module.endswith(f".{entry}") for entry in entries)
        }

    def _settle_head(self) -> None:
        """Let a tied head be one tensor with the embeddings, or part the two where the adapter does.

        Raises:
            VerificationError: what should be one tensor is stored as two that differ.
        """
        if not self.base.tied:
            return
        here = [self.items[name] for name in (self.head, self.embeddings) if name in self.items]
        where = f"{self.base.folder}: head and embeddings are tied, but {self.head} and {self.embeddings}"
        if len(here) == 2 and not _same(here[0].source, here[1].source):
            raise VerificationError(f"{where} are stored with different values; tie_word_embeddings or one of the two is wrong")
        if self.tied:
            both = [self.saved.get(name) for name in (self.head, self.embeddings)]
            if both[0] is not None and both[1] is not None and not _same(both[0], both[1]):
                raise VerificationError(f"{where} differ in {self.adapter.folder}, which does not train them apart")
            if both[0] is not None and both[1] is None:
                self.saved[self.embeddings] = both[0]
            self.saved.pop(self.head, None)
        if self.embeddings not in self.items:
            self.items = {
                self.embeddings if name == self.head else name: replace(item, name=self.embeddings)
                if name == self.head
                else item
                for name, item in self.items.items()
            }
        if self.tied:
            self.items.pop(self.head, None)
        elif self.head not in self.items:
            self.items[self.head] = replace(self.items[self.embeddings], name=self.head)

    def _entry(self, item: HeldTensor, dtype: str) -> Entry:
        kept = not item.is_float or (item.name in self.base.buffers and item.source is not None)
        shape = self.saved[item.name].shape if item.name in self.saved else item.shape
        return Entry(item.name, item.stored_dtype if kept else NAMES[dtype], shape)


@contextmanager
def _bar(total: int, *, show: bool) -> "Iterator[Callable[[int], None]]":
    """Yield what is called after each tensor with the bytes written so far."""
    if not show:
        yield lambda _: None
        return
    from quantkit.console import progress

    with progress("Merging", total, unit="tensors") as bar:
        yield lambda written: bar.advance(written_bytes=written)


def _same(one: Any, other: Any) -> bool:
    if one is None or other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(bool(a.equal(b)) for a, b in zip(row_chunks(one), row_chunks(other), strict=True))
