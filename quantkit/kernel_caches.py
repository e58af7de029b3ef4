"""How many compiled matrix products does a process on a CPU keep? As many as a step takes turns with, not as many as it met.

A bfloat16 product of a shape that was not met before is compiled, and kept twice: by oneDNN, and by PyTorch's layer over it,
1,024 of them each. In rows of different lengths nearly every step brings new shapes, and one takes about 0.6 MiB: 50 steps of
the demo grew from 1.1 to 1.8 GiB, about 8 MiB a step. A step of 8 to 32 rows takes turns with 86 to 109 shapes; where fewer
are kept, each block compiles them again (0.4 ms each). So `KERNELS_KEPT` are: the same 50 steps ended at 1.4 GiB, and
compiled 4 products a step more (2 ms). PEFT's own DoRA modules (`fused_adapters` off) take turns with more: a
fifth faster where the two variables below say 1024. Rounding batches up to lengths that come again, the alternative, computes
what nobody needs.
"""

import os

KERNELS_KEPT = 128
VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""What oneDNN and PyTorch (ideep) read at a process's first product: how many each keeps."""


def limit_kernel_caches() -> None:
    """Let this process keep `KERNELS_KEPT` compiled products, where the environment names no number; call before the first."""
    for name in VARIABLES:
        os.environ.setdefault(name, str(KERNELS_KEPT))
