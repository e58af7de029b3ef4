"""What does a training step take? One clock for every tool, so that none is measured more kindly than another.

Runs in ours and in a peer's environment: nothing but the standard library and torch. A step's time is what passes between the
ends of two optimizer steps, its batch's preparation included; the first step, which warms up and whose gradients are
kept, has none. Seconds count what all threads of the process computed, and beside it what the wall clock says.
"""

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

NEVER_CLIPPED = 1e9
"""A norm that no gradient exceeds: it is computed, as in any run, and scales by exactly 1."""


class StepClock:
    """Times, losses, peak memory and the first gradients of one training run."""

    def __init__(self, gradients: str | None = None) -> None:
        """`gradients`: the file for those of the first step."""
        self._file = gradients
        self._cpu_s: list[float] = []
        self._wall_s: list[float] = []
        self._losses: list[float] = []
        self._before = 0

    def start(self) -> None:
        """Begin: the model is loaded, nothing is computed yet."""
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status_bytes("VmRSS")

    def loss(self, value: float) -> None:
        """Note a step's loss in nats per response token."""
        self._losses.append(value)

    def gradients(self, model: Any) -> None:
        """Keep the gradients of the first step; call it before every optimizer step."""
        if self._file is not None:
            write_gradients(model, self._file)
            self._file = None

    def step(self) -> None:
        """Note that an optimizer step ended."""
        self._cpu_s.append(time.process_time())
        self._wall_s.append(time.perf_counter())

    def found(self) -> dict[str, Any]:
        """Return what was measured, without the first step's times."""
        return {
            "cpu_s": _between(self._cpu_s),
            "wall_s": _between(self._wall_s),
            "losses": self._losses,
            "peak_rss_bytes": _status_bytes("VmHWM"),
            "rss_before_bytes": self._before,
        }


def write_gradients(model: Any, file: str) -> None:
    """Write the gradients of the trainable parameters as they are."""
    from safetensors.torch import save_file

    save_file({name: item.grad.contiguous() for name, item in model.named_parameters() if item.grad is not None}, file)


def set_adapters(model: Any, file: str) -> None:
    """Give the adapters the values that all tools start from; each keeps the data type it has."""
    import torch
    from safetensors.torch import load_file

    values = load_file(file)
    trained = {name: item for name, item in model.named_parameters() if item.requires_grad}
    if trained.keys() != values.keys():
        raise ValueError(
            f"{len(trained)} trained tensors, {len(values)} in {file}: {sorted(trained.keys() ^ values.keys())[:2]}"
        )
    with torch.no_grad():
        for name, item in trained.items():
            item.copy_(values[name])


def write_answer(file: str, found: dict[str, Any]) -> None:
    """Write what was measured."""
    Path(file).write_text(json.dumps(found))


def _between(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))
