"""Is a run that is not the checkpoint's told so field by field, and does it get what it accepts?"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit.errors import UsageError
from quantkit.training import TrainingResult, identity
from quantkit.training.checkpoints import RunState
from quantkit.training.identity import FREE_SETTINGS, check_same_run, describe_run, frozen_sha256
from tests.training.helpers import adapted, config, equal, run, trained


@pytest.fixture(scope="module")
def made(tiny_model: Path, data: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint 3 of a run of six steps."""
    folder = tmp_path_factory.mktemp("run")
    run(adapted(tiny_model), data, config(save_steps=3, save_total_limit=9), tokenizer, folder)
    shutil.rmtree(folder / "checkpoint-6")
    return folder


@pytest.fixture
def resumed(made: Path, tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path) -> Any:
    """Resume the run with other settings, rows, tokenizer or model."""
    folder = shutil.copytree(made, tmp_path / "run")

    def resume(
        *, rows: Any = data, words: Any = tokenizer, model: Any = None, accept: str = "", **settings: Any
    ) -> tuple[Any, Any]:
        model = model or adapted(tiny_model)
        result = run(model, rows, config(resume_from_checkpoint=True, accept_changes=accept, **settings), words, folder)
        return model, result

    return resume


def test_settings_that_differ_are_named_with_both_values_and_the_way_to_accept_them(resumed: Any) -> None:
    with pytest.raises(UsageError) as caught:
        resumed(learning_rate=1e-3, seed=7)
    text = str(caught.value)
    assert "made by another run: learning_rate was 0.005 and is 0.001; seed was 42 and is 7." in text
    assert text.endswith("accept_changes=learning_rate,seed")
    assert caught.value.exit_code == 2


def test_rows_template_base_and_libraries_that_differ_are_named(
    resumed: Any, data: Any, tokenizer: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"data was 'fingerprint' and is 'another'\."):
        resumed(rows=replace(data, fingerprint="another"))

    class Other:
        chat_template = tokenizer.chat_template + " "
        pad_token_id = tokenizer.pad_token_id

    with pytest.raises(UsageError, match=r"chat_template was [0-9a-f]{12} and is [0-9a-f]{12}\."):
        resumed(words=Other())
    model = adapted(tiny_model)
    model.get_submodule("base_model.model.model.layers.2.mlp.up_proj.base_layer").weight.data.mul_(1.01)
    with pytest.raises(UsageError, match=r"base was [0-9a-f]{12} and is [0-9a-f]{12}\."):
        resumed(model=model)
    monkeypatch.setattr("quantkit.environment._version", lambda name: {"torch": "2.99", "peft": "0.99"}.get(name, ""))
    with pytest.raises(
        UsageError, match=r"torch was [^;]+ and is '2\.99'; peft was [^;]+ and is '0\.99'\. .*accept_changes=torch,peft"
    ):
        resumed()


def test_a_length_that_bends_the_learning_rate_is_a_difference(resumed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"max_steps was 6 and is 7"):
        resumed(max_steps=7)
    _, result = resumed(max_steps=7, accept="max_steps")
    assert (result.resumed_from, result.steps) == (3, 7)
    said = " ".join(capsys.readouterr().err.split())
    assert "accepted: max_steps was 6 and is 7. The result is that of no uninterrupted run" in said
    assert "was to have 6 steps, this one has 7" in said
    assert result.accepted_changes == [{"field": "max_steps", "was": 6, "is": 7, "from_step": 4}]
    assert TrainingResult.from_dict(result.to_dict()) == result


def test_a_length_that_bends_nothing_is_none() -> None:
    was = {"settings": config(lr_scheduler_type="constant").to_dict(), "facts": {}, "versions": {}}
    now = was | {"settings": was["settings"] | {"max_steps": 9}}
    assert check_same_run(RunState(settings=was["settings"], total_steps=6), now, where=Path(), total_steps=9) == {}


def test_a_run_shorter_than_its_checkpoint_is_refused(resumed: Any) -> None:
    with pytest.raises(UsageError, match="checkpoint-3: 3 steps are done, this run is to have 2; raise max_steps"):
        resumed(max_steps=2)


def test_what_was_accepted_takes_effect(resumed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer's file has the old learning rate and weight decay in it, and loading it would bring them back."""
    from quantkit.training.loop import StepTrainer

    seen: list[tuple[float, float]] = []
    original = StepTrainer.training_step

    def step(trainer: Any, *arguments: Any, **named: Any) -> Any:
        group = trainer.optimizer.param_groups[0]
        seen.append((group["lr"], group["weight_decay"]))
        return original(trainer, *arguments, **named)

    monkeypatch.setattr(StepTrainer, "training_step", step)
    _, result = resumed(learning_rate=1e-3, weight_decay=0.5, accept="learning_rate,weight_decay")
    assert seen == [(pytest.approx(1e-3 * left / 6), 0.5) for left in (3, 2, 1)]
    assert len(result.accepted_changes) == 2


def test_settings_without_effect_may_change_unasked_and_are_those_of_the_new_run(
    resumed: Any, tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path
) -> None:
    whole = adapted(tiny_model)
    run(whole, data, config(), tokenizer, tmp_path / "whole")
    free = {"save_steps": 2, "save_total_limit": 5, "logging_steps": 1, "dataloader_num_workers": 2, "recompute": "selective"}
    model, result = resumed(**free, per_device_train_batch_size=2, gradient_accumulation_steps=2, merge_after_train=False)
    assert result.accepted_changes == []
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-3", "checkpoint-4", "checkpoint-6"]
    for name, weight in trained(whole).items():
        torch.testing.assert_close(trained(model)[name], weight, rtol=1e-3, atol=2e-4)
    assert set(free) <= FREE_SETTINGS


@pytest.mark.parametrize("name", ["peft_config", "lora_r", "optim", "processes"])
def test_what_tensors_belong_to_cannot_be_accepted(name: str, resumed: Any) -> None:
    with pytest.raises(UsageError, match=f"accept_changes has '{name}'; the checkpoint's tensors belong to it"):
        resumed(accept=name)


def test_another_adapter_or_optimizer_is_another_run(resumed: Any) -> None:
    with pytest.raises(UsageError, match=r"optim was None and is 'sgd'\. Use the same, or start a new run$"):
        resumed(optim="sgd", seed=3)


def test_a_name_that_no_checkpoint_keeps_is_refused(resumed: Any) -> None:
    with pytest.raises(UsageError, match="accept_changes has 'learning_rat', which a checkpoint does not keep"):
        resumed(accept="learning_rat")


def test_options_of_the_method_are_compared_one_by_one() -> None:
    def described(**options: Any) -> dict[str, Any]:
        return {"settings": config(method_options=options).to_dict(), "facts": {}, "versions": {}}

    state = RunState(settings=described(group_size=64, sym=True)["settings"])
    with pytest.raises(
        UsageError, match=r"damp_percent was None and is 0.1; group_size was 64 and is 128\. .*=damp_percent,gr"
    ):
        check_same_run(state, described(group_size=128, sym=True, damp_percent=0.1), where=Path(), total_steps=0)


def test_held_out_losses_of_other_rows_are_not_set_side_by_side(resumed: Any, data: Any) -> None:
    _, same = resumed()
    assert same.evaluation_loss_before is not None
    _, other = resumed(rows=replace(data, evaluation=data.evaluation[3:]))
    assert other.evaluation_loss_before is None
    assert other.evaluation_loss_after is not None


def test_the_base_is_known_by_all_its_tensors(tiny_model: Path) -> None:
    first, second = adapted(tiny_model), adapted(tiny_model)
    assert frozen_sha256(first) == frozen_sha256(second)
    for name, parameter in second.named_parameters():
        before = parameter.data.clone()
        parameter.data.add_(1)
        assert (frozen_sha256(second) == frozen_sha256(first)) is parameter.requires_grad, name
        parameter.data.copy_(before)


def test_the_kind_of_device_is_a_fact(data: Any, tokenizer: Any) -> None:
    facts = [describe_run(data, config(), tokenizer=tokenizer, device=name)["facts"] for name in ("cpu", "cuda:1", "cuda")]
    assert [fact["device_type"] for fact in facts] == ["cpu", "cuda", "cuda"]
    assert set(describe_run(data, config(), tokenizer=tokenizer, device="cpu")["versions"]) <= set(identity.LIBRARIES)


def test_batches_made_by_other_processes_are_the_same(tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path) -> None:
    alone, helped = (adapted(tiny_model, dropout=0.1) for _ in range(2))
    run(alone, data, config(), tokenizer, tmp_path)
    run(helped, data, config(dataloader_num_workers=2), tokenizer, tmp_path)
    assert equal(trained(alone), trained(helped))


def test_how_gradients_are_summed_is_a_fact_where_all_weights_are_trained(data: Any, tokenizer: Any) -> None:
    """Adapters are whole in every process; parts of a full model's gradients come in another order."""
    facts = [
        describe_run(data, config(peft_config=kind, sharding="fsdp2"), tokenizer=tokenizer, device="cpu")["facts"]
        for kind in ("LoRa", "NoPeft")
    ]
    assert [fact.get("sharding") for fact in facts] == [None, "fsdp2"]
