"""How do adapters become part of a model's weights?

`fold_adapters` folds them into the loaded base they were trained against, dequantized: the reference, in memory.
`merge_streaming` does the same from folder to folder, one tensor at a time, and refuses what does not belong together.
Merging into quantized weights, as PEFT does, rounds most of a small update away.
"""

from quantkit.merging.delta import FolderAdapter, adapter_hash, read_adapter_folder
from quantkit.merging.fold import fold_adapters
from quantkit.merging.prepared import Merged
from quantkit.merging.stream import merge_streaming

__all__ = ["FolderAdapter", "Merged", "adapter_hash", "fold_adapters", "merge_streaming", "read_adapter_folder"]
