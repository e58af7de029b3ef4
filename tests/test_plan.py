"""Is a plan plain data, and does it refuse adapters that cannot be trained?"""

import json

import pytest

from quantkit import AdapterPlan, PlanContext, QuantizationPlan, Stage
from quantkit.errors import UsageError
from quantkit.methods import installed_methods

PLAN = installed_methods().plan("QLORA", {}, PlanContext(adapter=AdapterPlan(r=8), device="cuda"))


def test_a_plan_survives_json():
    assert QuantizationPlan.from_dict(json.loads(json.dumps(PLAN.to_dict()))) == PLAN


def test_an_adapter_plan_survives_json():
    adapter = AdapterPlan(kind="DoRa", r=8, target_modules=("q_proj",), modules_to_save=("lm_head",), use_rslora=True)
    assert AdapterPlan.from_dict(json.loads(json.dumps(adapter.to_dict()))) == adapter


def test_labels_are_those_of_names():
    plans = (AdapterPlan(r=16), AdapterPlan(r=16, use_rslora=True), AdapterPlan(kind="VeRa", r=256), AdapterPlan(kind="NoPeft"))
    assert [plan.label for plan in plans] == ["LoRa16", "RsLoRa16", "VeRa256", "NoPeft"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"kind": "LoRA"}, "adapter.kind is 'LoRA'; known: NoPeft, LoRa, DoRa, VeRa"),
        ({"r": 0}, "adapter.r is 0; a rank is between 1 and 65536"),
        ({"lora_dropout": 1.0}, r"adapter.lora_dropout is 1.0; a probability below 1 is wanted"),
        ({"kind": "VeRa", "use_rslora": True}, "use_rslora scales LoRa and DoRa; the adapter is VeRa"),
    ],
)
def test_an_adapter_that_cannot_be_trained_is_refused(settings, text):
    with pytest.raises(UsageError, match=text):
        AdapterPlan(**settings)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"stage": "later"}, "plan: stage is 'later'"),
        ({"compute_type": "bfloat16"}, r"plan has the unknown key 'compute_type'\. Did you mean 'compute_dtype'\?"),
        ({"spec": None}, "plan: spec is None"),
    ],
)
def test_a_plan_of_others_is_read_strictly(change, text):
    with pytest.raises(UsageError, match=text):
        QuantizationPlan.from_dict(PLAN.to_dict() | change)


def test_stages_are_words():
    assert [stage.value for stage in Stage] == ["base", "trained"]
