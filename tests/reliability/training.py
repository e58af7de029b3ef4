"""Four kinds of runs on a very small model, how to stop one, and what must be equal afterwards."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from quantkit.adapters import attach_adapter
from quantkit.config import RunConfig
from quantkit.plan import AdapterPlan, PeftKind
from quantkit.training import TrainingResult
from tests.merging.folders import model_folder
from tests.tiny import tiny_tokenizer
from tests.training.helpers import config, reversed_arithmetic, run

KINDS: dict[str, tuple[PeftKind, bool, float]] = {
    "LoRA": ("LoRa", False, 0.1),
    "DoRA": ("DoRa", False, 0.0),
    "VeRA": ("VeRa", False, 0.1),
    "QLORA": ("LoRa", True, 0.1),
}
"""Name → kind of adapter, whether the base is held in NF4, dropout (DoRA without: its fused layers are then in effect)."""
STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
Step = Any


class Small:
    """A model of one layer with random weights, its tokenizer and rows; a step takes some hundredths of a second."""

    def __init__(self, folder: Path) -> None:
        self.folder = model_folder(folder, dtype="float32", num_hidden_layers=1)
        self.tokenizer = tiny_tokenizer()
        self.data = reversed_arithmetic(self.tokenizer)

    def fresh(self, name: str) -> Any:
        """Return the model with new adapters of a kind; the same weights each time."""
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        kind, four_bit, dropout = KINDS[name]
        quantized: dict[str, Any] = {}
        if four_bit:
            nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.float32}
            quantized = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **nf4), "device_map": {"": "cpu"}}
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32, **quantized)
        return attach_adapter(model, AdapterPlan(kind=kind, r=4, lora_alpha=8, lora_dropout=dropout), seed=1)

    def run(self, model: Any, chosen: RunConfig, folder: Path) -> TrainingResult:
        """Train."""
        return run(model, self.data, chosen, self.tokenizer, folder)

    def run_and_stop(self, model: Any, chosen: RunConfig, folder: Path, *, after: int) -> TrainingResult:
        """Train, and send this process SIGTERM in a pass of step `after`, as a batch system would."""

        def stop(trainer: Any, _inputs: Any) -> None:
            if trainer.state.global_step == after - 1 and not trainer.rows:
                os.kill(os.getpid(), signal.SIGTERM)

        with at_each_pass(stop):
            return self.run(model, chosen, folder)


def settings(name: str, **changes: Any) -> RunConfig:
    """Return settings of a kind: rows shuffled and packed, two passes a step, a warm-up and a curved learning rate."""
    chosen: dict[str, Any] = {
        "peft_config": KINDS[name][0],
        "packing": True,
        "max_length": 96,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "weight_decay": 0.01,
        "learning_rate": 5e-2 if name == "VeRA" else 5e-3,
    }
    return config(**(chosen | changes))


@contextmanager
def at_each_pass(act: Step) -> Iterator[None]:
    """Call `act(trainer, inputs)` before every forward and backward pass."""
    from quantkit.training.loop import StepTrainer

    original = StepTrainer.training_step

    def step(trainer: Any, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
        act(trainer, inputs)
        return original(trainer, model, inputs, *more, **named)

    StepTrainer.training_step = step
    try:
        yield
    finally:
        StepTrainer.training_step = original


def state_of(checkpoint: Path) -> dict[str, Any]:
    """Return the values of a checkpoint's optimizer, schedule and random states.

    Python's own generator is left out: libraries draw from it when they are first imported (rich does), steps never do.
    """
    from transformers.trainer_pt_utils import safe_globals

    with safe_globals():
        found = {name: torch.load(checkpoint / name, weights_only=True) for name in STATE}
    del found["rng_state.pth"]["python"]
    return found


def same(left: Any, right: Any) -> bool:
    """Whether two nests of dicts, lists and tensors hold the same bits."""
    if torch.is_tensor(left):
        return torch.is_tensor(right) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    equal = left == right
    return bool(equal.all()) if hasattr(equal, "all") else bool(equal)
