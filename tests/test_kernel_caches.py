"""Compiled products of a CPU process: as many are kept as a step takes turns with, unless the environment says otherwise."""

import json
import os
import subprocess
import sys

import pytest

from quantkit.kernel_caches import KERNELS_KEPT, VARIABLES, limit_kernel_caches

GROWN = """
import ctypes, json, os, sys
import torch
if sys.argv[1] == "limited":
    import quantkit.modeling
class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split())]
count = ctypes.CDLL(None).mallinfo2
count.restype = Heap
weight = torch.randn(256, 64, dtype=torch.bfloat16)
before = count().uordblks
for rows in range(100, 500):
    torch.randn(rows, 64, dtype=torch.bfloat16) @ weight.t() @ weight
print(json.dumps(count().uordblks - before))
"""


def test_the_environment_gets_a_number_where_it_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(VARIABLES[0], "7")
    limit_kernel_caches()
    assert [os.environ[name] for name in VARIABLES] == ["7", str(KERNELS_KEPT)]


def test_products_of_ever_new_shapes_do_not_fill_the_memory_of_a_process_that_loads_models() -> None:
    limited, unlimited = grown("limited"), grown("as it is")
    if unlimited < 100e6:
        pytest.skip(f"products of 800 shapes take {unlimited / 1e6:.0f} MB on this machine without a limit")
    assert limited < unlimited / 3


def grown(how: str) -> int:
    """Return the bytes by which a process's heap grew over products of 800 shapes."""
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run([sys.executable, "-c", GROWN, how], env=clean, capture_output=True, text=True, check=False)
    if "mallinfo2" in done.stderr:
        pytest.skip("this C library does not tell what its heap holds")
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout))
