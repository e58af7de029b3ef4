"""A base split over processes computes what a whole one computes, and is whole again afterwards.

One process of a group of its own is enough for that; what two do stands in `test_distributed.py`.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from quantkit.backends.bitsandbytes import dense_weight, state_4bit
from quantkit.errors import UsageError
from quantkit.layers import linear_layers
from quantkit.training.fused_adapters import fused_adapters
from quantkit.training.sharding import is_split, replicated, split_over_processes, whole_modules
from tests.bench import token_batch
from tests.training.adapters import on_a_batch, with_adapters
from tests.training.distributed_worker import frozen_bytes, look
from tests.training.helpers import adapted
from tests.training.test_fused_bases import BASES


@pytest.fixture
def group() -> Iterator[None]:
    """A group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("name", ["NF4", "NF4 in bfloat16 containers", "HQQ"])
def test_a_split_base_computes_the_same_and_is_as_before_afterwards(name: str, tiny_model: Path) -> None:
    model = with_adapters(BASES[name](tiny_model))
    weights, seen = frozen_bytes(model), look(model)
    parameters = dict(model.named_parameters())
    loss, gradients = on_a_batch(model)
    for _ in range(2):  # a second run on the same model splits it again
        with split_over_processes(model, device="cpu"):
            assert is_split(model)
            assert any(isinstance(item, DTensor) for item in model.parameters())
            assert all(item.numel() == 0 for key, item in parameters.items() if key in weights)
            with fused_adapters(model) as count:
                found, others = on_a_batch(model)
            assert count == len(linear_layers(model))
            assert torch.equal(found, on_a_batch(model)[0])
        assert found == pytest.approx(float(loss), rel=1e-6)
        assert others.keys() == gradients.keys()
        for key, gradient in gradients.items():
            torch.testing.assert_close(others[key], gradient, rtol=1e-4, atol=1e-6)
        assert frozen_bytes(model) == weights
        assert look(model) == seen
        assert all(item is parameters[key] for key, item in model.named_parameters())


@pytest.mark.usefixtures("group")
def test_weights_are_whole_where_modules_are_looked_at(tiny_model: Path) -> None:
    model = adapted(tiny_model)
    assert list(whole_modules(model)) == list(model.modules())
    with split_over_processes(model, device="cpu"):
        seen = []
        for module in whole_modules(model):
            seen.append(module)
            assert not any(isinstance(item, DTensor) for item in module.parameters(recurse=False))
        assert seen == list(model.modules())
        assert all(isinstance(layer.weight, DTensor) for layer in linear_layers(model).values())


@pytest.mark.usefixtures("group")
def test_only_what_is_trained_goes_over_the_wire(tiny_model: Path) -> None:
    model = adapted(tiny_model)
    with split_over_processes(model, device="cpu"):
        trained = {name for name, item in model.named_parameters() if item.requires_grad}
        wrapped = replicated(model)
        assert "_ddp_params_and_buffers_to_ignore" not in vars(model)
        assert trained.isdisjoint(wrapped.parameters_to_ignore)
        assert len(wrapped.parameters_to_ignore) + len(trained) >= len(list(model.named_parameters()))
        wrapped(input_ids=token_batch(), labels=token_batch()).loss.backward()
        assert {name for name, item in model.named_parameters() if item.grad is not None} == trained


def test_a_layer_knows_how_its_4_bit_weight_is_quantized_when_the_weight_does_not(tiny_model: Path) -> None:
    layer = next(iter(linear_layers(BASES["NF4"](tiny_model)).values()))
    expected = dense_weight(layer)
    layer.weight = torch.nn.Parameter(layer.weight.data, requires_grad=False)
    assert state_4bit(layer) is layer.quant_state
    assert torch.equal(dense_weight(layer), expected)


def test_what_cannot_be_split_is_refused(tiny_model: Path) -> None:
    with (
        pytest.raises(
            UsageError, match=r"layers\.0\.self_attn\.q_proj.*weight is a Int8Params, which cannot be split; use NoQ"
        ),
        split_over_processes(with_adapters(BASES["INT8"](tiny_model)), device="cpu"),
    ):
        pass
    with (
        pytest.raises(UsageError, match="Linear has no list of decoder blocks"),
        split_over_processes(torch.nn.Linear(2, 2), device="cpu"),
    ):
        pass
