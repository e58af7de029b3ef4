"""Does the first signal end a run in order, and the second at once?"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from quantkit.training.checkpoints import checkpoint_folders
from tests.reliability.training import Small, at_each_pass, settings
from tests.training.helpers import equal, trained

ROOT = Path(__file__).parents[2]
ENDLESS_S = 120
DRIVER = f"""
import sys, time
from quantkit.training.loop import StepTrainer
from quantkit_tools.cli import main

own = StepTrainer.training_step

def slow(trainer, *given, **named):
    if trainer.state.global_step == 1:
        print("in step 2", flush=True)
        time.sleep({ENDLESS_S})
    return own(trainer, *given, **named)

StepTrainer.training_step = slow
sys.exit(main(sys.argv[1:]))
"""
"""A run whose second step takes long."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A model of one layer, its tokenizer and rows."""
    return Small(tmp_path_factory.mktemp("small"))


def test_the_second_signal_ends_the_command_at_once_and_leaves_nothing_half_written(small: Small, tmp_path: Path) -> None:
    small.tokenizer.save_pretrained(small.folder)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"question": "{number} + 1?", "answer": "{number + 1}"}}\n' for number in range(24)))
    flags = ["train", "--model", small.folder, "--dataset", rows, "--lora-r", "2", "--max-steps", "4", "--save-steps", "1"]
    command = [sys.executable, "-u", "-c", DRIVER, *flags, "--output-dir", tmp_path / "made", "--device", "cpu"]
    with subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert any(line == "in step 2\n" for line in process.stdout)
        process.send_signal(signal.SIGINT)
        said = iter(process.stderr.readline, "")
        assert any("finishing this step and saving a checkpoint; once more to stop at once" in line for line in said)
        assert process.poll() is None
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=ENDLESS_S) == 130
        assert time.monotonic() - begun < ENDLESS_S / 4
        assert process.stderr.read().endswith("interrupted\n")
    (checkpoint,) = (tmp_path / "made" / ".checkpoints").rglob("checkpoint-*")
    assert checkpoint.name == "checkpoint-1"
    assert not list((tmp_path / "made").rglob(".writing-*"))
    assert not list((tmp_path / "made").glob("[!.]*"))


def test_ctrl_c_in_a_terminal_reaches_the_processes_that_make_batches_and_does_not_end_them(
    small: Small, tmp_path: Path
) -> None:
    """A terminal sends the signal to every process of the foreground; without its batches the step could not be finished."""

    before = set(psutil.Process().children())  # what tests before this one have running still

    def to_all(trainer: Any, _inputs: Any) -> None:
        if trainer.state.global_step == 1 and not trainer.rows:
            workers = set(psutil.Process().children()) - before
            assert len(workers) == 2
            for worker in workers:
                worker.send_signal(signal.SIGINT)
                worker.send_signal(signal.SIGTERM)

    chosen = settings("LoRA", max_steps=3, dataloader_num_workers=2, packing=False)
    model, alone = small.fresh("LoRA"), small.fresh("LoRA")
    with at_each_pass(to_all):
        result = small.run(model, chosen, tmp_path / "run")
    assert result.steps == 3
    small.run(alone, chosen.with_changes(dataloader_num_workers=0), tmp_path / "alone")
    assert equal(trained(model), trained(alone))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_of_either_kind_is_a_checkpoint_after_the_step(number: int, small: Small, tmp_path: Path) -> None:
    def stop(trainer: Any, _inputs: Any) -> None:
        if trainer.state.global_step == 1 and trainer.rows:  # between the two passes of a step
            os.kill(os.getpid(), number)

    with at_each_pass(stop):
        result = small.run(small.fresh("LoRA"), settings("LoRA", max_steps=4), tmp_path)
    assert (result.interrupted, result.steps) == (True, 2)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["checkpoint-2"]
