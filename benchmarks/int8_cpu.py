"""Does dynamic int8 make a model faster on this CPU, and in which format?

    python benchmarks/int8_cpu.py [--quick] [--json FILE] [--model DIR] [--rounds N]

The same weights five ways: dense in bfloat16 and float32; DynamicINT8's checkpoint as plain transformers loads it; the same
with `use_integer_kernels`; torchao's dynamic int8, where torchao is installed. Reading 512 tokens (prefill) and producing one
after the other (decode) are timed in turn, the ways one after the other in every round, and the best round counts: so a busy
moment of the machine hits all alike. Threads are as `OMP_NUM_THREADS` says. Exit code 3 when a goal does not hold.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from goals import Goal, add_flags, finish
from models import model_folder

PROMPT, STEPS = 512, 8


def main() -> int:
    """Measure, print, write, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--model", metavar="DIR", help="a model of your own")
    parser.add_argument("--rounds", type=int, default=4, help="rounds, of which the best counts (default 4)")
    arguments = parser.parse_args()
    import torch

    from quantkit.console import table, use_stderr

    use_stderr()
    source = model_folder(arguments.model, quick=arguments.quick)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(ways_of(source, folder), rounds=arguments.rounds)
    rows = [[name, f"{item['prefill_tokens_per_s']:.1f}", f"{item['decode_tokens_per_s']:.2f}"] for name, item in found.items()]
    table(f"Tokens per second, {torch.get_num_threads()} threads", ["way", "prefill", "decode"], rows)
    setting = {"model": Path(source).name, "prompt": PROMPT, "steps": STEPS, "threads": torch.get_num_threads()}
    return finish("int8_cpu", {"setting": setting, "ways": found}, judge(found), arguments.json)


def ways_of(source: str, folder: str) -> dict[str, Callable[[], Any]]:
    """Return name → what loads the model that way; DynamicINT8's checkpoint is written to `folder` first."""
    import torch
    from transformers import AutoModelForCausalLM

    from quantkit import AdapterPlan, PlanContext, Stage
    from quantkit.backends.integer_kernels import use_integer_kernels
    from quantkit.methods import installed_methods
    from quantkit.modeling import load_base

    context = PlanContext(stage=Stage.TRAINED, adapter=AdapterPlan(kind="NoPeft"))
    methods = installed_methods()
    load_base(source, plan=methods.plan("DynamicINT8", {}, context), methods=methods, device="cpu").save_pretrained(folder)

    def load(path: str, dtype: torch.dtype, **more: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **more).eval()

    ways: dict[str, Callable[[], Any]] = {
        "dense bfloat16": lambda: load(source, torch.bfloat16),
        "dense float32": lambda: load(source, torch.float32),
        "DynamicINT8, transformers": lambda: load(folder, torch.bfloat16),
        "DynamicINT8, integer kernels": lambda: use_integer_kernels(load(folder, torch.bfloat16)),
    }
    if find_spec("torchao"):
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig
        from transformers import TorchAoConfig

        config = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
        ways["torchao dynamic int8"] = lambda: load(source, torch.bfloat16, quantization_config=config)
    return ways


def measure(ways: dict[str, Callable[[], Any]], *, rounds: int) -> dict[str, dict[str, float]]:
    """Return name → best tokens per second of prefill and decode."""
    import torch

    models = {name: load() for name, load in ways.items()}
    best = {name: [0.0, 0.0] for name in models}
    with torch.inference_mode():
        for _ in range(rounds):
            for name, model in models.items():
                rates = rates_of(model)
                best[name] = [max(pair) for pair in zip(best[name], rates, strict=True)]
    return {name: {"prefill_tokens_per_s": pre, "decode_tokens_per_s": dec} for name, (pre, dec) in best.items()}


def rates_of(model: Any) -> tuple[float, float]:
    """Return tokens per second of one prefill, and of a few steps after it."""
    import torch

    ids = torch.arange(PROMPT).remainder(400).add(3).unsqueeze(0)
    started = time.perf_counter()
    state = model(ids, use_cache=True).past_key_values
    read = time.perf_counter()
    for _ in range(STEPS):
        state = model(ids[:, :1], past_key_values=state, use_cache=True).past_key_values
    return PROMPT / (read - started), STEPS / (time.perf_counter() - read)


def judge(found: dict[str, dict[str, float]]) -> list[Goal]:
    """Integer kernels must beat both dense data types, or they are of no use."""
    goals = []
    for rate in ("prefill_tokens_per_s", "decode_tokens_per_s"):
        dense = max(item[rate] for name, item in found.items() if name.startswith("dense"))
        value = found["DynamicINT8, integer kernels"][rate] / dense
        goals.append(Goal(f"{rate.split('_', 1)[0]}, over the faster dense model", value, "above 1", value > 1))
    return goals


if __name__ == "__main__":
    sys.exit(main())
