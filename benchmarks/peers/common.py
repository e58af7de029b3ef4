"""What does every peer's script share? The job it is handed, the clock, and the answer it writes.

Runs inside a peer's environment, where quantkit is not installed: nothing but the standard library and torch.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """One quantization: of which model, by which of the library's methods, on which tokens, and where to."""

    model: str
    method: str
    weights_bits: int
    group_size: int
    rows: list[list[int]]
    """Calibration rows of token ids."""
    out: str
    """Folder of the checkpoint, or of dense weights on the grid."""
    answer: str
    """JSON file for what was measured here."""


def read_job() -> Job:
    """Return the job in the file that the command line names."""
    return Job(**json.loads(Path(sys.argv[1]).read_text()))


class Meter:
    """Seconds and peak memory of the quantization alone: libraries and model are loaded before, files written after."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    @contextmanager
    def quantizing(self) -> Iterator[None]:
        """Measure what runs inside; the kernel's mark of resident memory is reset first."""
        Path("/proc/self/clear_refs").write_text("5")
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.found = {
            "duration_s": round(time.perf_counter() - wall, 3),
            "cpu_s": round(time.process_time() - cpu, 3),
            "peak_rss_bytes": _peak_bytes(),
        }


def write_answer(job: Job, meter: Meter, **more: Any) -> None:
    """Write what was measured; `more`: `bits_per_weight` where dense weights were saved, `out` where they lie."""
    Path(job.answer).write_text(json.dumps(meter.found | more))


def load_model(job: Job) -> tuple[Any, Any]:
    """Return model, in the data type it is stored in, and tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(job.model, dtype="auto")
    return model.eval(), AutoTokenizer.from_pretrained(job.model)


def save_dense(job: Job, weights: dict[str, Any]) -> None:
    """Write the model with these layers' weights replaced, in the data type it had."""
    import torch

    model, tokenizer = load_model(job)
    with torch.no_grad():
        for name, weight in weights.items():
            layer = model.get_submodule(name)
            layer.weight.copy_(weight.to(layer.weight.dtype))
    model.save_pretrained(job.out)
    tokenizer.save_pretrained(job.out)


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
