"""How does an adapter become part of a model that does not fit into memory?

    merged = merge_streaming(base, adapter, destination, dtype="bfloat16", fingerprint=fingerprint_base(base))

Shard by shard, one tensor at a time: read, made what the training base held (`policy="dequantized"`; `"base"` takes the
original weights as they are), changed if it is a target, cast, written. At no time are more than a few copies of the largest
layer in memory. In float32 the result is bit-equal to `fold_adapters` on the loaded model, else it is that result rounded.
Loading base and adapter, as `merge_and_unload` wants it, takes the whole model in memory, and more for a quantized one.

Whatever could make the result another model than the one that was trained is refused before the first byte is written:
see `quantkit.merging.refusals`. `finish` gets the folder before it appears under its name, to measure it and to add a record.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantkit.files import refuse_existing
from quantkit.merging.prepared import MAX_SHARD_BYTES, Merged, prepare_merge


def merge_streaming(
    base: str | Path,
    adapter: str | Path,
    destination: Path,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    progress: bool = True,
    finish: Callable[[Path, Merged], None] | None = None,
    **settings: Any,
) -> Merged:
    """Fold the adapter of a folder into a base's files and write a dense model; return what was done.

    `settings` are those of `quantkit.merging.prepared.prepare_merge`.

    Raises:
        UsageError: folders, settings or formats that cannot be read or merged; the destination exists.
        VerificationError: adapter and base do not belong together, were merged before, or a result is not finite.
    """
    refuse_existing(destination, overwrite=overwrite)
    prepared = prepare_merge(base, adapter, **settings)
    return prepared.write(destination, max_shard_bytes=max_shard_bytes, overwrite=overwrite, progress=progress, finish=finish)
