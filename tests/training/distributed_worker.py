"""What two processes do for `test_distributed.py` and `test_sharding.py`, which start them once: several runs in turn.

`python -m torch.distributed.run --nproc-per-node 2 -m tests.training.distributed_worker MODEL ROWS FOLDER`; every process
writes what it saw to `FOLDER/<scenario>-<rank>.pt`.
"""

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from quantkit.joining import together
from quantkit.processes import is_first
from quantkit.training import loop
from quantkit.training.loop import StepTrainer
from quantkit.training.sharding import trains_parts
from tests.training.helpers import reversed_arithmetic, run, trained
from tests.training.scenarios import SCENARIOS, made

Before = Callable[[StepTrainer, Any], None]


@contextmanager
def before_each_pass(act: Before) -> Iterator[None]:
    """Call `act(trainer, model)` before every forward and backward pass."""
    original = StepTrainer.training_step

    def step(trainer: Any, model: Any, *arguments: Any, **named: Any) -> Any:
        act(trainer, model)
        return original(trainer, model, *arguments, **named)

    StepTrainer.training_step = step
    try:
        yield
    finally:
        StepTrainer.training_step = original


def frozen_bytes(model: Any) -> dict[str, bytes]:
    """Return the bytes of each frozen parameter, or of each where none is frozen, that this process holds."""
    found, all_trained = {}, all(item.requires_grad for item in model.parameters())
    for name, item in model.named_parameters():
        if all_trained or not item.requires_grad:
            here = item.to_local() if isinstance(item, DTensor) else item.data
            found[name] = here.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return found


def look(model: Any) -> list[tuple[str, str, list[str], int]]:
    """Return of each module its name, class, attributes and how many hooks it has."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    return [
        (name, type(module).__name__, sorted(vars(module)), sum(len(vars(module)[each]) for each in hooks))
        for name, module in model.named_modules()
    ]


class Watch:
    """Notes the rows of every pass, and in which pass gradients went over the wire."""

    def __init__(self) -> None:
        self.passes: list[tuple[int, list[int]]] = []
        self.reduced: list[int] = []
        self.held: int | None = None
        """Bytes of the weights in this process that can be split, before the first pass."""
        self._hooked: set[int] = set()

    def __call__(self, trainer: StepTrainer, model: Any) -> None:
        if id(model) not in self._hooked and not trains_parts(trainer.model):
            assert isinstance(model, DistributedDataParallel)
            model.register_comm_hook(None, self._reduce)
            self._hooked.add(id(model))
        if self.held is None:
            self.held = sum(map(len, frozen_bytes(trainer.model).values()))
        self.passes.append((trainer.state.global_step, trainer.rows))

    def _reduce(self, _state: Any, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        self.reduced.append(len(self.passes))
        return allreduce_hook(torch.distributed.group.WORLD, bucket)


def main(model: str, rows: str, folder: Path) -> None:
    """Run every scenario in turn."""
    from transformers import AutoTokenizer

    rank = int(os.environ["RANK"])
    tokenizer = AutoTokenizer.from_pretrained(model)
    data = reversed_arithmetic(tokenizer)

    def save(name: str, **facts: Any) -> None:
        torch.save(facts, folder / f"{name}-{rank}.pt")

    with together("cpu"):
        for name, scenario in SCENARIOS.items():
            watch, adapters = Watch(), made(scenario, model)
            frozen = frozen_bytes(adapters)
            with before_each_pass(watch):
                result = run(adapters, scenario.rows_of(data), scenario.split(), tokenizer, folder / name)
            save(
                name,
                result=result.to_dict(),
                weights=trained(adapters),
                passes=watch.passes,
                reduced=watch.reduced,
                held=watch.held,
                frozen=sum(map(len, frozen.values())),
                kept=frozen_bytes(adapters) == frozen,
                look=look(adapters),
            )

        def stop(trainer: StepTrainer, _model: Any) -> None:
            if rank == 1 and trainer.state.global_step == 1 and not trainer.rows:
                os.kill(os.getpid(), signal.SIGTERM)

        for name, goes_on in (("dense", "resumed"), ("split full", "resumed full")):
            scenario = SCENARIOS[name]
            with before_each_pass(stop):
                stopped = run(made(scenario, model), scenario.rows_of(data), scenario.split(), tokenizer, folder / goes_on)
            torch.manual_seed(rank)
            adapters = made(scenario, model)
            settings = scenario.split().with_changes(resume_from_checkpoint=True, sharding="fsdp2")
            result = run(adapters, scenario.rows_of(data), settings, tokenizer, folder / goes_on)
            save(goes_on, stopped=stopped.to_dict(), result=result.to_dict(), weights=trained(adapters))
    save("codes", codes=[code for _, code in commands(model, rows, folder)])


def commands(model: str, rows: str, folder: Path) -> Iterator[tuple[str, int]]:
    """Run the command five times: it trains and merges; the artifact is there; the launcher asks for FSDP2 for an adapter's
    base and for a model that is trained whole; one process meets a loss that is no number."""
    from quantkit_tools.cli import main as command

    flags = ["train", "--model-name-or-path", model, "--dataset-name", rows, "--lora-r", "2", "--max-steps", "2"]
    flags += ["--per-device-train-batch-size", "2", "--compute-dtype", "float32", "--save-dtype", "float32", "--device", "cpu"]
    yield "trains", ended(command, [*flags, "--output-dir", str(folder / "made")])
    yield "exists", ended(command, [*flags, "--output-dir", str(folder / "made")])
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    qlora = ["--quant-method", "QLORA", "--quant-storage", "bfloat16"]
    yield "splits", ended(command, [*flags, *qlora, "--output-dir", str(folder / "split")])
    yield "splits all", ended(command, [*flags, "--peft-config", "NoPeft", "--output-dir", str(folder / "full")])
    del os.environ["ACCELERATE_USE_FSDP"]
    original = loop.supervised_loss
    if not is_first():
        loop.supervised_loss = lambda *given, **named: original(*given, **named) * math.nan
    yield "breaks", ended(command, [*flags, "--output-dir", str(folder / "broken")])


def ended(command: Callable[[list[str]], int], flags: list[str]) -> int:
    """Return the exit code."""
    try:
        return command(flags)
    except SystemExit as left:
        return int(left.code or 0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
