"""What does a folder of weights really hold, told without torch?

`read_header` reads a safetensors header as hostile input; `read_stored_weights` reads a folder's tensors and its
`quantization_config` independently of each other and insists that they agree. The alternative, believing the
configuration or a folder's name, is how 4-bit models come to be listed and evaluated as 16-bit ones.
"""

from quantkit.headers.plain import check_folder, read_object, refuse_links_out
from quantkit.headers.stored import StoredWeights, read_stored_weights
from quantkit.headers.tensorfiles import Header, StoredTensor, TensorIndex, read_header, read_tensor_index

__all__ = [
    "Header",
    "StoredTensor",
    "StoredWeights",
    "TensorIndex",
    "check_folder",
    "read_header",
    "read_object",
    "read_stored_weights",
    "read_tensor_index",
    "refuse_links_out",
]
