"""Is a number that is not finite found wherever a run keeps numbers, and named?"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

from quantkit.training.guards import frozen_faults, state_faults


@pytest.fixture
def stepped() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model of two layers, the first frozen, and its optimizer after a step."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([item for item in model.parameters() if item.requires_grad])
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_a_sound_state_has_no_fault(stepped: Any) -> None:
    model, optimizer = stepped
    assert state_faults(model, optimizer) == []
    assert state_faults(model) == []
    assert frozen_faults(model) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_moments_and_frozen_weights_are_named_apart(value: float, stepped: Any) -> None:
    model, optimizer = stepped
    optimizer.state[model[1].bias]["exp_avg_sq"][0] = value
    assert state_faults(model, optimizer) == ["the optimizer's states of 1 (1.bias)"]
    assert state_faults(model) == []
    model[1].weight.data[2, 1] = value
    assert state_faults(model, optimizer) == ["weights 1 (1.weight)", "the optimizer's states of 1 (1.bias)"]
    model[0].bias.data[0] = value
    assert frozen_faults(model) == ["frozen weights 1 (0.bias)"]


def test_large_values_whose_squares_are_infinite_are_no_fault(stepped: Any) -> None:
    model, optimizer = stepped
    model[1].weight.data.fill_(1e30)
    assert state_faults(model, optimizer) == []


@pytest.mark.parametrize(
    "kept",
    [
        lambda bad: {"state1": torch.zeros(4, dtype=torch.uint8), "absmax1": bad},
        lambda bad: {"blocks": {"absmax": bad}},
        lambda bad: {"exp_avg": TwoTensor(torch.zeros(4), bad)},
        lambda bad: {"exp_avg": bad.bfloat16(), "exp_avg_sq": torch.zeros(4).to(torch.float8_e4m3fn)},
    ],
    ids=["8 bit", "nested", "made of others", "8-bit floats beside"],
)
def test_states_of_other_optimizers_are_looked_into(kept: Callable[[Any], dict[str, Any]], stepped: Any) -> None:
    model, optimizer = stepped
    optimizer.state[model[1].bias] = {"step": 7, **kept(torch.zeros(4))}
    assert state_faults(model, optimizer) == []
    optimizer.state[model[1].bias] = {"step": 7, **kept(torch.tensor([0.0, float("nan"), 0.0, 0.0]))}
    assert state_faults(model, optimizer) == ["the optimizer's states of 1 (1.bias)"]
