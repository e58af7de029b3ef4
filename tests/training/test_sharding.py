"""A base split over processes computes what a whole one computes, and is whole again afterwards.

One process of a group of its own is enough for that; what two do stands in `test_distributed.py`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from quantkit.backends.bitsandbytes import dense_weight, state_4bit
from quantkit.errors import UsageError
from quantkit.layers import linear_layers
from quantkit.training.checkpoints import weights_sha256
from quantkit.training.fused_adapters import fused_adapters
from quantkit.training.parts import load_states, load_weights, whole_states, whole_weights
from quantkit.training.sharding import averaged, is_split, split_over_processes, trains_parts, whole_modules
from tests.bench import token_batch
from tests.training.adapters import apart, on_a_batch, with_adapters
from tests.training.distributed_worker import frozen_bytes, look
from tests.training.helpers import adapted, equal
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
@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
def test_a_model_that_is_trained_whole_computes_the_same_in_parts(arithmetic: str, tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    weights, seen, parameters = frozen_bytes(model), look(model), dict(model.named_parameters())
    with torch.autocast("cpu", torch.bfloat16, enabled=arithmetic == "bfloat16"):
        loss, gradients = on_a_batch(model)
        model.zero_grad()
        with split_over_processes(model, device="cpu", arithmetic=arithmetic):
            assert trains_parts(model)
            found, others = on_a_batch(model)
            assert {item.dtype for item in others.values()} == {torch.float32}
            whole = {key: item.full_tensor() for key, item in others.items()}  # type: ignore[attr-defined]
    assert apart(whole, gradients) < (1e-5 if arithmetic == "float32" else 2**-7)
    assert found == pytest.approx(float(loss), rel=1e-6)
    assert (frozen_bytes(model), look(model)) == (weights, seen)
    assert all(item is parameters[key] for key, item in model.named_parameters())


@pytest.mark.usefixtures("group")
def test_parts_are_written_as_a_whole_model_would_be_and_read_from_it(tiny_model: Path, tmp_path: Path) -> None:
    def step(model: Any, optimizer: Any) -> dict[str, Any]:
        on_a_batch(model)
        optimizer.step()
        optimizer.zero_grad()
        return whole_weights(model)

    model, other = (AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32) for _ in range(2))
    with split_over_processes(model, device="cpu"), split_over_processes(other, device="cpu"):
        first, second = (torch.optim.AdamW(item.parameters(), lr=1e-2) for item in (model, other))
        state = step(model, first)
        assert state["lm_head.weight"] is state["model.embed_tokens.weight"]
        model.save_pretrained(tmp_path, state_dict=state)
        torch.save(whole_states(first), tmp_path / "optimizer.pt")
        load_weights(other, tmp_path)
        load_states(second, tmp_path / "optimizer.pt")
        assert weights_sha256(other) == weights_sha256(model)
        assert equal(step(other, second), step(model, first))
    assert equal(model.state_dict(), other.state_dict())


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
        wrapped = averaged(model)
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
