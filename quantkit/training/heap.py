"""How does memory that a step no longer needs get back to the system, where memory is what counts?

On a CPU, tensors come from the C library's heap. What is freed between tensors that live on stays with the process: recomputing
blocks of 4,096 tokens held 2.2 GB for 375 MB of living tensors. glibc gives free pages back when it is asked to; asked each
time the process has grown by `GROWTH_BYTES`, before a block runs and before it runs backward, where it is computed again, a
step took 9 to 18 % longer and 0.9 GB less (asked in forward passes alone, 0.4 GB less). Asked after 96 MiB it took 35 % longer
for 50 MB more: each block fills its memory anew then. A base of 1 GiB split over two processes,
whose blocks are gathered and freed in turn, peaked above a whole one (1,501 MiB, 1,352), and below it when asked so (1,243).
Asking is not enough of large batches: steps of 8 x 512 tokens of a model of 40 M parameters, in float32, held 2,710 MB where
2,347 were forecast, and 2,536 asked so; with all blocks computed again 1,545 to 1,609, asked so, for 1,186. With every tensor
from `MAPPED_BYTES` on mapped by itself they held 2,299 and 1,079 to 1,098. The kernel clears each page anew then: 25.8 s of
processor time instead of 22.3. So that begins where half of the memory that was free is taken; with room to spare nothing is
mapped. A model of 135 M parameters then took 5,545 MB with room for 6,000 (7,294 with room to spare, 5,330 forecast), and with
all blocks computed again 1,414 with room for 1,500 (2,311, 1,405); these were asked in forward passes alone, and the last takes
1,350 with room to spare since backward passes ask, too. Mapping from the beginning, the alternative, which environment
variables can choose, makes every run pay. Other C libraries are left alone.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GROWTH_BYTES = 2**28
MAPPED_BYTES = 2**20
LARGEST_FROM_HEAP = 2**25
"""Where glibc's own threshold ends when it moves it: mallopt(3), M_MMAP_THRESHOLD, whose number is the next."""
M_MMAP_THRESHOLD = -3
STATM = Path("/proc/self/statm")


def give_back() -> None:
    """Ask the C library to return the free memory it holds to the system."""
    trim = _trim()
    if trim is not None:
        trim(0)


def map_large(size_bytes: int = MAPPED_BYTES) -> None:
    """Ask the C library to map each tensor from this size on by itself: what is freed of them is the system's at once."""
    if _trim() is not None:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, size_bytes)


@contextmanager
def held_small(model: Any, device: str, *, wanted: bool) -> Iterator[None]:
    """Give memory back within, before a decoder block runs or runs backward, whenever the process has grown by `GROWTH_BYTES`.

    From the beginning where that is `wanted`, else from where half of what was free is taken; from there on, large tensors are
    mapped by themselves.
    """
    from quantkit.errors import UsageError
    from quantkit.layers import bare_model
    from quantkit.memory import free_bytes
    from quantkit.numerics.capture import find_blocks
    from quantkit.processes import world_size

    blocks: list[Any] = []
    if device == "cpu" and _trim() is not None and STATM.is_file():
        try:
            blocks = list(find_blocks(bare_model(model))[1])
        except UsageError:  # a model without a list of blocks
            blocks = []
    least = _resident_bytes() if blocks else 0
    scarce = least + free_bytes(device) // world_size() // 2 if blocks else 0
    mapped = False

    def look(*_: Any) -> None:
        nonlocal least, mapped
        now = _resident_bytes()
        begins = now > scarce and not mapped
        if begins:
            map_large()
            mapped = True
        if begins or ((wanted or mapped) and now > least + GROWTH_BYTES):
            give_back()
            least = _resident_bytes()
        least = min(least, now)

    def look_again(_module: Any, _inputs: Any, output: Any) -> None:
        """Look again before the block's backward pass, in which it may be computed again."""
        states = output[0] if isinstance(output, tuple) else output
        if getattr(states, "requires_grad", False):
            states.register_hook(look)

    hooks = [block.register_forward_pre_hook(look) for block in blocks]
    hooks += [block.register_forward_hook(look_again) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        if mapped:
            map_large(LARGEST_FROM_HEAP)


def _trim() -> Callable[[int], int] | None:
    """Return glibc's malloc_trim(3), None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None


def _resident_bytes() -> int:
    """Return the resident memory of this process: the second number of proc_pid_statm(5), in pages."""
    import resource

    return int(STATM.read_text().split()[1]) * resource.getpagesize()
