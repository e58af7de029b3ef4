"""R1: killed before any call that changes a file, a save leaves the old or the new, and the next run ends with the new."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.faults import cases, models
from tests.reliability.faults.models import one_thread, scratch, small, tokenizer
from tests.reliability.faults.walks import Case, keep_before, reset, walk_kills
from tests.reliability.faults.watch import CAN_WATCH
from tests.reliability.promises import amount
from tests.training.helpers import adapted, config, reversed_arithmetic, run

__all__ = ["one_thread", "scratch", "small", "tokenizer"]
pytestmark = [
    pytest.mark.skipif(not CAN_WATCH, reason="system calls are watched on Linux, x86-64, where ptrace is allowed"),
    pytest.mark.usefixtures("one_thread"),
]
EVERY = 10_000
Walked = Callable[[Case, int], None]


@pytest.fixture
def walked(figure: Any) -> Walked:
    """Kill a save at so many of its calls, all of them in the full form, and say how many were survived."""

    def walk(case: Case, quick: int) -> None:
        found = walk_kills(case, amount(quick, EVERY))
        print(f"{case.name}: {found.held} of {found.tried} kills survived", *found.problems, sep="\n")
        assert found.tried
        figure("R1", found.held, found.tried)

    return walk


@pytest.mark.parametrize("make", [cases.a_result, cases.a_first_result, cases.a_report], ids=lambda make: make.__name__)
def test_a_file_is_the_old_or_the_new(make: Callable[[Path], Case], scratch: Path, walked: Walked) -> None:
    walked(make(scratch), 6)


def test_an_artifact_comes_into_the_registry_whole_or_not_at_all(scratch: Path, walked: Walked) -> None:
    walked(cases.a_registry_update(scratch), 12)


@pytest.mark.parametrize("in_two_steps", [False, True], ids=["exchanged", "in two steps"])
def test_an_artifact_that_is_replaced_is_never_missing(in_two_steps: bool, scratch: Path, walked: Walked) -> None:
    walked(cases.an_overwritten_folder(scratch, in_two_steps=in_two_steps), 12)


def test_a_folder_is_removed_at_once(scratch: Path, walked: Walked) -> None:
    walked(cases.a_removed_folder(scratch), 6)


def test_a_finished_block_of_a_quantization_is_there_or_not(scratch: Path, walked: Walked) -> None:
    walked(cases.a_finished_block(scratch), 8)


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwriting"])
def test_a_final_model(overwrite: bool, small: Path, tokenizer: Any, scratch: Path, walked: Walked) -> None:
    from transformers import AutoModelForCausalLM

    case = models.dense_model(scratch, small, tokenizer, overwrite=overwrite)
    walked(case, 6)
    (found,) = case.root.glob("Tiny*")
    assert AutoModelForCausalLM.from_pretrained(found).num_parameters()


def test_a_kept_adapter(small: Path, tokenizer: Any, scratch: Path, walked: Walked) -> None:
    walked(models.kept_adapter(scratch, small, tokenizer), 6)


def test_a_quantized_model(small: Path, tokenizer: Any, scratch: Path, walked: Walked) -> None:
    walked(models.quantized_model(scratch, small, tokenizer), 6)


def test_a_merge_tensor_by_tensor(small: Path, tokenizer: Any, scratch: Path, walked: Walked) -> None:
    walked(models.merged_model(scratch, small, tokenizer), 8)


def test_a_checkpoint_and_the_rotation_after_it(tiny_model: Path, tokenizer: Any, scratch: Path, walked: Walked) -> None:
    """The run stands right before its third save; each kill happens to a copy of it, and then the run itself goes on."""
    from quantkit.training.loop import StepTrainer

    root = scratch / "checkpoints"
    ends: list[str] = []

    def walk(save: Callable[[], object]) -> None:
        keep_before(root)
        walked(Case("checkpoint", root, save, lambda: cases.checkpoints(root)), 10)
        reset(root)
        ends.append("walked")

    data = reversed_arithmetic(tokenizer)
    settings = config(save_steps=1, max_steps=3, save_total_limit=2, per_device_train_batch_size=1)
    with cases.standing_before(StepTrainer, "_save_checkpoint", lambda self: self.state.global_step == 3, walk):
        run(adapted(tiny_model), data, settings, tokenizer, root)
    assert ends == ["walked"]
    assert sorted(cases.committed(root)) == ["checkpoint-2", "checkpoint-3"]
