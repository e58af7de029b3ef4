"""What breaks here only when it is tried? Each trial runs in a process that may die of it. (`quantkit doctor --deep`)

One child process runs the trials in turn and says, line by line, which one it is at; if it dies, that trial is the one that
killed it and a new process goes on with the next. In our own process a library compiled for another processor would end the
doctor instead of the patient.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from quantkit.doctor.findings import Finding

TIME_LIMIT_S = 120.0
"""Seconds that all trials together may take."""
WIDTHS = (64, 96, 160, 576, 768, 4096)
"""Widths of 4-bit rows that are tried: a block, what is none, and those of usual models."""
Outcome = Literal["ok", "beware", "breaks"]


@dataclass(frozen=True, slots=True)
class Trial:
    """How one trial ended."""

    name: str
    outcome: Outcome
    detail: str

    def to_dict(self) -> dict[str, str]:
        """Return plain JSON data."""
        return {"name": self.name, "outcome": self.outcome, "detail": self.detail}


def run_trials(*, time_limit_s: float = TIME_LIMIT_S, names: tuple[str, ...] | None = None) -> list[Trial]:
    """Return how each trial ended, in their order."""
    left = list(TRIALS if names is None else names)
    ended: list[Trial] = []
    while left:
        ended_now, why = _run_process(left, time_limit_s)
        ended += ended_now
        left = left[len(ended_now) :]
        if left:
            ended.append(Trial(left.pop(0), "breaks", why))
            if why.startswith("took"):
                ended += [Trial(name, "beware", "not tried: another trial took too long") for name in left]
                break
    return ended


def judge_trials(trials: list[Trial]) -> list[Finding]:
    """Return what went wrong in trials, as findings."""
    return [
        Finding(severity=trial.outcome, subject=f"tried: {trial.name}", what=trial.detail, advice=ADVICE[trial.name])
        for trial in trials
        if trial.outcome != "ok"
    ]


def _run_process(names: list[str], time_limit_s: float) -> tuple[list[Trial], str]:
    """Return the trials that ended, and why the next one did not."""
    command = [sys.executable, "-P", "-m", "quantkit.doctor.trials", *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=time_limit_s, check=False)
        output, why = done.stdout, f"the process died with code {done.returncode}: {_last_line(done.stderr)}"
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        why = f"took longer than {time_limit_s:g} s"
    said = [json.loads(line) for line in output.splitlines() if line.startswith('{"trial"')]
    return [Trial(item["trial"], item["outcome"], item["detail"]) for item in said], why


def _last_line(text: str) -> str:
    return next((line.strip()[:200] for line in reversed(text.splitlines()) if line.strip()), "no message")


def _libraries() -> tuple[Outcome, str]:
    import peft
    import torch
    import transformers

    device = f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else "CPU"
    return "ok", f"torch {torch.__version__} ({device}), transformers {transformers.__version__}, peft {peft.__version__}"


def _gpu() -> tuple[Outcome, str]:
    import torch

    if not torch.cuda.is_available():
        return "ok", "torch sees no CUDA device"
    names = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        names.append(f"{facts.name} (compute {facts.major}.{facts.minor}, {facts.total_memory / 2**30:.0f} GiB)")
    values = torch.ones(8, 8, device="cuda", dtype=torch.bfloat16)
    finite = bool((values @ values).isfinite().all())
    return ("ok" if finite else "breaks"), f"{', '.join(names)}; a bfloat16 product is {'right' if finite else 'not finite'}"


def _adapter() -> tuple[Outcome, str]:
    import torch
    from peft import LoraConfig, get_peft_model

    model: Any = torch.nn.Sequential(torch.nn.Linear(8, 8))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["0"]))
    adapted(torch.ones(1, 8)).sum().backward()
    lacking = [name for name, value in adapted.named_parameters() if value.requires_grad and value.grad is None]
    return ("breaks", f"no gradient for {lacking[0]}") if lacking else ("ok", "LoRA attaches and its matrices get gradients")


def _repacking() -> tuple[Outcome, str]:
    from quantkit.backends.bitsandbytes import import_lightly, keep_layout, quiet

    import_lightly()
    quiet()
    import torch

    def repacked(*, guarded: bool) -> bool:
        layer = _four_bit_layer(256)
        if guarded:
            keep_layout(torch.nn.Sequential(layer))
        with torch.no_grad():
            layer(torch.ones(1, 256, dtype=torch.bfloat16))
        return bool(getattr(layer.weight.quant_state, "packing_format_for_cpu", False))

    if repacked(guarded=True):
        return "breaks", "4-bit weights are repacked in place although quantkit switched that off; training on them goes wrong"
    if repacked(guarded=False):
        return "ok", "bitsandbytes repacks 4-bit weights on this CPU; quantkit's guard prevents it (other tools need their own)"
    return "ok", "bitsandbytes leaves 4-bit weights as they are on this CPU"


def _rows() -> tuple[Outcome, str]:
    from quantkit.backends.bitsandbytes import import_lightly, quiet, reads_rows

    import_lightly()
    quiet()
    wrong = [width for width in WIDTHS if not all(reads_rows(width, grid) for grid in ("nf4", "fp4"))]
    if wrong:
        said = f"4-bit rows of {_listed(wrong)} weights are decoded wrongly on this CPU (tried: {_listed(WIDTHS)})"
        return "beware", f"{said}; quantkit refuses them"
    return "ok", f"4-bit rows of {_listed(WIDTHS)} weights are decoded rightly"


def _listed(widths: Iterable[int]) -> str:
    return ", ".join(str(width) for width in widths)


def _arithmetic() -> tuple[Outcome, str]:
    from quantkit.training.precision import faster_dtype

    return "ok", f"matrix products are faster in {faster_dtype('cpu')} on this CPU"


def _four_bit_layer(width: int) -> Any:
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    layer = Linear4bit(width, width, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    layer.weight = Params4bit(torch.ones(width, width), requires_grad=False, quant_type="nf4").to("cpu")
    return layer.eval()


TRIALS: dict[str, Callable[[], tuple[Outcome, str]]] = {
    "import of torch, transformers, peft": _libraries,
    "GPU": _gpu,
    "LoRA": _adapter,
    "bitsandbytes repacks 4-bit weights": _repacking,
    "bitsandbytes reads 4-bit rows": _rows,
    "arithmetic": _arithmetic,
}
ADVICE = {
    "import of torch, transformers, peft": "install versions that belong together: pip install --force-reinstall quantkit",
    "GPU": "install torch for the driver's CUDA version",
    "LoRA": "see the pairs of versions above; pip install 'peft>=0.21,<0.22'",
    "bitsandbytes repacks 4-bit weights": "pip install 'bitsandbytes>=0.50,<0.51'; until then train 4-bit bases on a GPU",
    "bitsandbytes reads 4-bit rows": "for models of such widths use a GPU, or a method that is not bitsandbytes' 4-bit",
    "arithmetic": "reinstall torch",
}


def main(names: list[str]) -> int:
    """Run these trials in this process, one JSON line each."""
    for name in names:
        try:
            outcome, detail = TRIALS[name]()
        except Exception as error:
            outcome, detail = "breaks", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(json.dumps({"trial": name, "outcome": outcome, "detail": detail}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
