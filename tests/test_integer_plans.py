"""Are equal settings of methods on an integer grid equal facts, tags and words about who serves them?"""

import pytest
import torch

from quantkit import PlanContext, Stage, UsageError
from quantkit.methods import installed_methods
from quantkit.shared_hooks import round_to_nearest
from tests.bench import load

CONTEXT = PlanContext(stage=Stage.TRAINED, model_config={"hidden_size": 576, "num_attention_heads": 9})
GROUPED = ("RTN", "GPTQ", "AWQ", "AdaRound", "BRECQ", "HQQ", "QuaRot", "AutoRound")


def plan(method, context=CONTEXT, **options):
    return installed_methods().plan(method, options, context)


@pytest.mark.parametrize("symmetric", [True, False])
def test_equal_settings_of_two_methods_are_equal_facts_and_notes(symmetric):
    made = [plan(method, weights_bits=4, group_size=64, symmetric=symmetric) for method in GROUPED]
    assert len({str(item.spec.with_changes(method="RTN", tags=())) for item in made}) == 1
    (notes,) = {item.notes for item in made}
    assert "vLLM's Marlin kernels do not take hidden_size 576" in notes[0]


def test_tags_name_the_grid_that_is_not_the_methods_usual_one_and_the_format():
    assert plan("GPTQ").spec.tags == plan("HQQ").spec.tags == plan("AWQ").spec.tags == ()
    assert plan("GPTQ", symmetric=False).spec.tags == ("asym",)
    assert plan("HQQ", symmetric=True).spec.tags == ("sym",)
    assert plan("AWQ", PlanContext(stage=Stage.TRAINED), format="awq").spec.tags == ("asym", "awq")
    assert plan("QuaRot", r2=False, symmetric=False).spec.tags == ("asym", "r1")


@pytest.mark.parametrize("method", [*GROUPED, "TorchAO"])
def test_a_group_is_columns_or_the_whole_row(method):
    with pytest.raises(UsageError, match="group_size is 0; it must be a number of columns, or -1 for the whole row"):
        plan(method, group_size=0)


def test_dynamicint8_is_rtn_in_8_bit_rows_with_rounded_activations(tiny_model):
    named, spelt = plan("DynamicINT8"), plan("RTN", weights_bits=8, group_size=-1, activations_bits=8)
    assert named.spec == spelt.spec.with_changes(method="DynamicINT8")
    assert named.notes == spelt.notes == ()
    one, other = (load(tiny_model, item).state_dict() for item in (named, spelt))
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_hook_that_methods_share_stands_in_each_of_their_modules():
    from quantkit_plugins import dynamicint8, rtn

    assert rtn.quantize_model is dynamicint8.quantize_model is round_to_nearest
