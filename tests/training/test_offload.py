"""Do activations that wait elsewhere give the same gradients, and do weights stay?"""

from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit.errors import UsageError
from quantkit.training import offload
from quantkit.training.offload import activations_offloaded
from tests.training.helpers import adapted, config, run


def test_offloaded_activations_give_the_same_gradients(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "SMALLEST_BYTES", 1)
    model = adapted(tiny_model)
    ids = torch.arange(40).reshape(2, 20)
    gradients = []
    for wanted in (False, True):
        model.zero_grad()
        with activations_offloaded(model, wanted=wanted, kind="cpu") as moved:
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        gradients.append({name: item.grad for name, item in model.named_parameters() if item.grad is not None})
        assert bool(moved) == wanted
    kept, fetched = gradients
    assert kept.keys() == fetched.keys()
    assert all(torch.equal(kept[name], fetched[name]) for name in kept)


def test_weights_and_small_tensors_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "SMALLEST_BYTES", 1000)
    layer = torch.nn.Linear(100, 50)
    large = torch.randn(8, 100, requires_grad=True)
    with activations_offloaded(layer, kind="cpu") as moved:
        layer(large * 1.0).sum()
        layer(torch.randn(2, 100)).sum()
    assert moved == [8 * 100 * 4]


def test_on_a_cpu_there_is_nothing_to_offload(tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"moves activations from a GPU's memory .* device is cpu; leave it out, or set rec"):
        run(adapted(tiny_model), data, config(activation_offloading=True), tokenizer, tmp_path)


def test_a_paged_optimizer_without_a_gpu_names_the_setting(tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"optim is paged_adamw_8bit, which pages .* device is cpu; use adamw_8bit, or leave optim out"
    ):
        run(adapted(tiny_model), data, config(optim="paged_adamw_8bit", max_steps=1), tokenizer, tmp_path)
