"""On which device does a run compute, and in which data type, where its settings leave that open or name something?"""

from quantkit.errors import UsageError
from quantkit.processes import local_rank, world_size
from quantkit.spec import DENSE_BITS


def resolve_device(device: str) -> str:
    """Return the device to use: `auto` is CUDA where there is one, else the CPU; of several processes each has its own GPU.

    Raises:
        UsageError: a CUDA device was asked for that is not there, or the name means nothing to torch.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and world_size() > 1:
        if device not in ("cuda", own := f"cuda:{local_rank()}"):
            raise UsageError(
                f"device is {device!r}, but each of {world_size()} processes has a GPU of its own; use auto or cuda"
            )
        device = own
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise UsageError(f"device is {device!r}; use auto, cpu, cuda or cuda:N") from None
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device is {device!r} but torch sees {torch.cuda.device_count()} CUDA devices; use auto or cpu")
    return device


def resolve_compute_dtype(compute_dtype: str, device: str) -> str:
    """Return the data type to compute in: `auto` is bfloat16 (else float16) on CUDA; float32 on CPUs without AMX.

    In float32 a merge can be compared with adapter on base to 1e-4. Training measures by itself which data type multiplies
    faster on a CPU (`quantkit.training.precision`).

    Raises:
        UsageError: the name is no dense data type.
    """
    import torch

    if compute_dtype != "auto":
        if compute_dtype not in DENSE_BITS:
            raise UsageError(f"compute_dtype is {compute_dtype!r}; use auto, {', '.join(DENSE_BITS)}")
        return compute_dtype
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if torch.cpu._is_amx_tile_supported() else "float32"
