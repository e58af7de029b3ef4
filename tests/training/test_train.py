"""Does a run train what it says, and end as it says?"""

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit.errors import QuantkitError, UsageError, VerificationError
from quantkit.layers import bare_model
from quantkit.plan import PeftKind
from quantkit.training import TrainingResult
from quantkit.training.checkpoints import checkpoint_folders
from quantkit.training.interrupt import Interruption
from tests.training.helpers import adapted, config, equal, run, trained


class StopAfter:
    """Sends this process a signal when a step begins, as a user would at that moment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
        from quantkit.training.loop import StepTrainer

        original = StepTrainer.training_step

        def step_and_signal(trainer: Any, *arguments: Any, **named: Any) -> Any:
            if trainer.state.global_step == step - 1:
                os.kill(os.getpid(), number)
            return original(trainer, *arguments, **named)

        monkeypatch.setattr(StepTrainer, "training_step", step_and_signal)


@pytest.mark.parametrize("kind", ["LoRa", "DoRa", "VeRa"])
def test_the_loss_falls_and_is_counted(kind: PeftKind, tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = adapted(tiny_model, kind, torch.bfloat16)
    rate = 5e-2 if kind == "VeRa" else 1e-2
    result = run(model, data, config(learning_rate=rate, max_steps=12), tokenizer, tmp_path)
    assert len(result.losses) == result.steps == result.total_steps == 12
    assert sum(result.losses[-3:]) < sum(result.losses[:3])
    assert result.final_loss == result.losses[-1]
    rows = data.train * 2
    assert result.tokens == sum(len(row.input_ids) for row in rows)
    assert result.response_tokens == sum(row.supervised for row in rows)
    assert result.tokens_per_s == pytest.approx(result.tokens / result.duration_s, rel=1e-2)
    assert result.evaluation_rows == 4
    assert result.evaluation_loss_after is not None
    assert result.evaluation_loss_before is not None
    assert result.evaluation_loss_after < result.evaluation_loss_before
    assert not result.interrupted
    assert result.resumed_from is None
    assert TrainingResult.from_dict(result.to_dict()) == result
    assert checkpoint_folders(tmp_path) == []


def test_the_model_is_given_back_as_it_came(tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = adapted(tiny_model, dtype=torch.bfloat16).eval()
    frozen = {name: item.clone() for name, item in model.named_parameters() if not item.requires_grad}
    run(model, data, config(max_steps=2, gradient_checkpointing=True), tokenizer, tmp_path)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], item) and after[name].dtype == item.dtype for name, item in frozen.items())
    assert {item.dtype for item in trained(model).values()} == {torch.float32}
    assert all(item.grad is None for item in model.parameters())
    assert not model.training
    assert bare_model(model).config.use_cache
    assert not bare_model(model).is_activation_checkpointing


def test_recomputing_activations_changes_no_loss(tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path) -> None:
    kept, recomputed = (
        run(adapted(tiny_model), data, config(max_steps=2, gradient_checkpointing=on), tokenizer, tmp_path)
        for on in (False, True)
    )
    assert kept.losses == recomputed.losses


def test_a_full_fine_tune_has_float32_master_weights(tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = adapted(tiny_model, "NoPeft", torch.bfloat16)
    before = trained(model)
    rate = 1e-6  # far below bfloat16's resolution: a bfloat16 optimizer would change next to nothing
    seen: list[torch.dtype] = []
    model.register_forward_pre_hook(lambda module, _: seen.append(next(module.parameters()).dtype))
    result = run(model, data, config(learning_rate=rate, compute_dtype="bfloat16", max_steps=8), tokenizer, tmp_path)
    assert set(seen) == {torch.float32}
    assert result.arithmetic_dtype == "bfloat16"
    assert {item.dtype for item in trained(model).values()} == {torch.bfloat16}
    assert not equal(before, trained(model))


def test_two_batches_of_four_are_one_of_eight(tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path) -> None:
    models = [adapted(tiny_model), adapted(tiny_model)]
    sizes = ({"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2})
    whole, split = (
        run(model, data, config(max_steps=3, **size), tokenizer, tmp_path) for model, size in zip(models, sizes, strict=True)
    )
    assert split.losses == pytest.approx(whole.losses, rel=1e-5)
    for name, weight in trained(models[0]).items():
        torch.testing.assert_close(trained(models[1])[name], weight, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("step", [1, 4, 6])
def test_an_interrupted_run_goes_on_bit_for_bit(  # noqa: PLR0917
    step: int, tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_steps": 8, "group_by_length": True, "warmup_steps": 2, "gradient_accumulation_steps": 1}
    straight = adapted(tiny_model, dropout=0.2)
    whole = run(straight, data, config(**settings), tokenizer, tmp_path / "straight")

    first = adapted(tiny_model, dropout=0.2)
    with monkeypatch.context() as patch:
        StopAfter(patch, step)
        stopped = run(first, data, config(**settings), tokenizer, tmp_path / "run")
    assert stopped.interrupted
    assert stopped.steps == step
    assert stopped.evaluation_loss_after is None
    assert [path.name for path in checkpoint_folders(tmp_path / "run")] == [f"checkpoint-{step}"]

    second = adapted(tiny_model, dropout=0.2)
    torch.manual_seed(step)  # another process has another random state
    resumed = run(second, data, config(resume_from_checkpoint=True, **settings), tokenizer, tmp_path / "run")
    assert resumed.resumed_from == step
    assert not resumed.interrupted
    assert equal(trained(straight), trained(second))
    assert resumed.losses == whole.losses
    assert (resumed.tokens, resumed.response_tokens) == (whole.tokens, whole.response_tokens)
    assert resumed.evaluation_loss_before == whole.evaluation_loss_before
    assert resumed.evaluation_loss_after == whole.evaluation_loss_after


def test_a_run_stopped_in_its_last_step_has_nothing_left_to_do(
    tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = adapted(tiny_model), adapted(tiny_model)
    with monkeypatch.context() as patch:
        StopAfter(patch, 2)
        stopped = run(first, data, config(max_steps=2), tokenizer, tmp_path)
    assert stopped.interrupted
    resumed = run(second, data, config(max_steps=2, resume_from_checkpoint=True), tokenizer, tmp_path)
    assert (resumed.steps, resumed.losses) == (2, stopped.losses)
    assert equal(trained(first), trained(second))


def test_a_full_fine_tune_goes_on_bit_for_bit(
    tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_steps": 3, "learning_rate": 1e-4}
    straight, first, second = (adapted(tiny_model, "NoPeft", torch.bfloat16) for _ in range(3))
    run(straight, data, config(**settings), tokenizer, tmp_path / "straight")
    with monkeypatch.context() as patch:
        StopAfter(patch, 2)
        run(first, data, config(**settings), tokenizer, tmp_path / "run")
    run(second, data, config(resume_from_checkpoint=True, **settings), tokenizer, tmp_path / "run")
    assert equal(trained(straight), trained(second))


def test_the_second_signal_stops_at_once() -> None:
    interruption = Interruption(notice=False)
    interruption.handle(signal.SIGINT, None)
    assert interruption.requested
    with pytest.raises(KeyboardInterrupt):
        interruption.handle(signal.SIGINT, None)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_rows(
    tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.training import loop

    model = adapted(tiny_model)
    losses = iter([1.0, 1.0, 1.0, math.nan])
    original = loop.supervised_loss
    monkeypatch.setattr(loop, "supervised_loss", lambda *arguments, **named: original(*arguments, **named) * next(losses))
    with pytest.raises(QuantkitError, match=r"step 4 \(rows \d+, \d+, \d+, \d+\): the loss is nan, .*checkpoint-3") as caught:
        run(model, data, config(save_steps=1), tokenizer, tmp_path)
    rows = [int(number) for number in str(caught.value).split("rows ")[1].split(")")[0].split(", ")]
    assert set(rows) <= {row.row for row in data.train}
    assert all(bool(item.isfinite().all()) for item in trained(model).values())
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["checkpoint-3", "checkpoint-2"]


def test_a_gradient_that_is_not_finite_reaches_no_weight(tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = adapted(tiny_model)
    target = next(item for name, item in model.named_parameters() if "lora_B" in name)
    calls = iter(range(100))
    target.register_hook(lambda grad: grad * (math.inf if next(calls) == 1 else 1.0))
    with pytest.raises(QuantkitError, match=r"step 2 \(rows .*\): the norm of the gradients is (nan|inf), .*checkpoint-1\."):
        run(model, data, config(), tokenizer, tmp_path)
    assert all(bool(item.isfinite().all()) for item in trained(model).values())


def test_a_layer_that_passes_no_gradient_on_stops_the_run(tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = adapted(tiny_model)
    layer = bare_model(model).model.layers[1].mlp.down_proj
    layer.lora_B["default"].register_forward_hook(lambda _, __, output: output.detach())
    with pytest.raises(VerificationError, match=r"step 1 \(rows .*2 \(.*layers.1.mlp.down_proj.*\) got no gradient"):
        run(model, data, config(), tokenizer, tmp_path)


def test_the_method_chooses_the_optimizer_unless_the_user_does(
    tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path
) -> None:
    by_method = run(adapted(tiny_model), data, config(max_steps=1), tokenizer, tmp_path, optim="adafactor")
    by_user = run(adapted(tiny_model), data, config(max_steps=1, optim="sgd"), tokenizer, tmp_path, optim="adafactor")
    by_default = run(adapted(tiny_model), data, config(max_steps=1), tokenizer, tmp_path)
    assert [by_method.optim, by_user.optim, by_default.optim] == ["adafactor", "sgd", "adamw_torch"]


def test_epochs_are_counted_in_steps(tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path) -> None:
    settings = config(max_steps=-1, num_train_epochs=1.5, gradient_accumulation_steps=2, lr_scheduler_type="cosine")
    result = run(adapted(tiny_model), data, settings, tokenizer, tmp_path)
    assert result.steps == math.ceil(1.5 * 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": "adamv"}, "optim or report_to: .*adamv"),
        ({"report_to": ("notebooks",)}, "optim or report_to: .*notebooks"),
        ({"compute_dtype": "float16"}, "compute_dtype is float16"),
    ],
)
def test_settings_that_do_not_fit_are_refused(  # noqa: PLR0917
    changes: dict[str, Any], message: str, tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        run(adapted(tiny_model), data, config(**changes), tokenizer, tmp_path)


def test_adapters_that_learnt_nothing_are_refused(tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="after 1 step all 28 adapters are still zero"):
        run(adapted(tiny_model), data, config(max_steps=1, warmup_steps=1), tokenizer, tmp_path)


def test_progress_in_a_log_file_has_loss_speed_and_memory(
    tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(adapted(tiny_model), data, config(max_steps=2), tokenizer, tmp_path)
    output = capsys.readouterr().out
    assert "train: 2/2 steps" in output
    assert "loss" in output
    assert "tokens" in output
    assert "resident" in output
