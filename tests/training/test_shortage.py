"""When memory runs out in a step, is all that was learnt before it kept, and can the run go on with less?"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit.errors import UsageError
from quantkit.layers import bare_model
from quantkit.training.checkpoints import checkpoint_folders
from quantkit.training.shortage import OutOfMemoryError, random_states, restore_random_states, shortage_of
from tests.training.helpers import adapted, config, equal, run, trained

SHORTAGES = {
    "on a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore lines"),
    "on a CPU": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    "in Python": MemoryError(),
}


def exhausted(model: Any, step: int, error: BaseException = SHORTAGES["on a GPU"], *, forwards_per_step: int = 1) -> Any:
    """Let the forward pass of a training step (counted from 1) raise; what a lever tries without gradients does not count."""
    calls = iter(range(1, 1000))

    def raise_there(module: Any, *_: Any) -> None:
        if module.training and torch.is_grad_enabled() and next(calls) == step * forwards_per_step:
            raise error

    bare_model(model).register_forward_pre_hook(raise_there)
    return model


@pytest.mark.parametrize("where", SHORTAGES)
def test_the_state_after_the_last_finished_step_is_saved_and_the_text_says_how_to_go_on(
    where: str, tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        run(exhausted(adapted(tiny_model), 3, SHORTAGES[where]), data, config(), tokenizer, tmp_path)
    text = str(caught.value)
    assert text.startswith("step 3 (rows ")
    assert f"the state after step 2 is in {tmp_path / 'checkpoint-2'}" in text
    assert "Halve per_device_train_batch_size" in text
    assert "Go on with resume_from_checkpoint=true" in text
    assert caught.value.checkpoint == tmp_path / "checkpoint-2"


def test_the_run_goes_on_as_if_memory_had_never_run_out(tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Dropout draws random numbers in the step that failed, too; two forward passes make a step, and the second one fails."""
    settings: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    straight, first, second = (adapted(tiny_model, dropout=0.2) for _ in range(3))
    run(straight, data, config(**settings), tokenizer, tmp_path / "straight")
    with pytest.raises(OutOfMemoryError):
        run(exhausted(first, 3, forwards_per_step=2), data, config(**settings), tokenizer, tmp_path / "run")
    run(second, data, config(resume_from_checkpoint=True, **settings), tokenizer, tmp_path / "run")
    assert equal(trained(straight), trained(second))


def test_the_run_goes_on_with_smaller_batches_and_recomputing_and_learns_the_same(
    tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path
) -> None:
    whole = run(adapted(tiny_model), data, config(), tokenizer, tmp_path / "whole")
    with pytest.raises(OutOfMemoryError):
        run(exhausted(adapted(tiny_model), 4), data, config(), tokenizer, tmp_path / "run")
    less: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "recompute": "full"}
    resumed = run(adapted(tiny_model), data, config(resume_from_checkpoint=True, **less), tokenizer, tmp_path / "run")
    assert resumed.resumed_from == 3
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-4)
    other = config(resume_from_checkpoint=True, **(less | {"per_device_train_batch_size": 3}))
    with pytest.raises(UsageError, match="per_device_train_batch_size was 4 and is 3"):
        run(adapted(tiny_model), data, other, tokenizer, tmp_path / "run")


def test_before_the_first_step_is_done_there_is_nothing_to_save(
    tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(OutOfMemoryError, match=r"step 1 .*nothing could be saved: no step was finished") as caught:
        run(exhausted(adapted(tiny_model), 1), data, config(), tokenizer, tmp_path)
    assert "resume_from_checkpoint" not in str(caught.value)
    assert checkpoint_folders(tmp_path) == []


def test_weights_that_the_optimizer_was_changing_are_not_saved(
    tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(1, 100))
    own: Callable[..., Any] = torch.optim.AdamW.step

    def step(self: Any, *arguments: Any, **named: Any) -> Any:
        if next(steps) == 3:
            raise MemoryError
        return own(self, *arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    text = "the optimizer was at work, so weights are half changed; the last checkpoint is .*checkpoint-2"
    with pytest.raises(OutOfMemoryError, match=text):
        run(adapted(tiny_model), data, config(save_steps=2), tokenizer, tmp_path)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["checkpoint-2"]


def test_a_checkpoint_that_cannot_be_written_either_is_said(
    tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.training import resumable

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(resumable, "write_json", fail)
    with pytest.raises(OutOfMemoryError, match=r"nothing could be saved: .*No space left on device"):
        run(exhausted(adapted(tiny_model), 2), data, config(), tokenizer, tmp_path)


def test_other_errors_are_no_shortage() -> None:
    assert shortage_of(RuntimeError("shapes cannot be multiplied")) is None
    assert shortage_of(ValueError("can't allocate memory")) is None


def test_random_numbers_are_drawn_again_after_their_states_are_put_back() -> None:
    import random

    import numpy as np

    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    states = random_states()
    before = drawn()
    restore_random_states(states)
    assert drawn() == before
