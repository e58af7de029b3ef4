"""Layers that multiply integers compute what the loader's layers compute, and only stand in for layers that they fit."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from quantkit import AdapterPlan, PlanContext, Stage
from quantkit.backends import layer_facts
from quantkit.backends.compressed_tensors import PackedLinear
from quantkit.backends.integer_kernels import IntegerLinear, use_integer_kernels
from quantkit.errors import UsageError
from quantkit.methods import installed_methods
from quantkit.numerics.grids import UniformGrid, quantize
from quantkit.testing import logits


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    hf_logging.disable_progress_bar()
    context = PlanContext(stage=Stage.TRAINED, adapter=AdapterPlan(kind="NoPeft"))
    methods = installed_methods()
    plan = methods.plan("DynamicINT8", {}, context)
    methods.quantize_model(plan, AutoModelForCausalLM.from_pretrained(tiny_model)).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_computes_what_the_stored_one_computes_up_to_the_rounding_of_sums(bias: bool) -> None:
    torch.manual_seed(0)
    weight, offsets = torch.randn(24, 64), nn.Parameter(torch.randn(24)) if bias else None
    stored = PackedLinear(quantize(weight, UniformGrid(8, -1, scale_dtype=torch.float32)), offsets, activations_bits=8)
    layer = IntegerLinear(stored.weight.data, stored.weight_scale.data, None if offsets is None else offsets.data, stored.facts)
    tokens = torch.randn(3, 5, 64)
    tokens[0, 0] = 0
    expected = stored(tokens)
    assert layer(tokens).shape == expected.shape
    assert float((layer(tokens) - expected).abs().max()) < 1e-4
    assert layer(tokens.bfloat16()).dtype == torch.bfloat16


def test_a_plainly_loaded_model_keeps_its_answers(folder: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    fast = use_integer_kernels(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    layer = fast.get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(layer, IntegerLinear)
    assert layer_facts(layer).activations_bits == 8
    expected, found = logits(plain).log_softmax(-1), logits(fast).log_softmax(-1)
    assert float((expected.exp() * (expected - found)).sum(-1).mean()) < 1e-3


def test_models_without_such_layers_are_refused_also_when_they_have_run(folder: Path, tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="no layer of the model has int8 weights and int8 activations"):
        use_integer_kernels(AutoModelForCausalLM.from_pretrained(tiny_model))
    model = AutoModelForCausalLM.from_pretrained(folder)
    logits(model)
    with pytest.raises(UsageError, match="it has run since: load it again and call use_integer_kernels first"):
        use_integer_kernels(model)


def test_models_on_other_devices_are_refused(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(UsageError, match="is on meta; these kernels run on the CPU"):
        use_integer_kernels(model.to("meta"))
