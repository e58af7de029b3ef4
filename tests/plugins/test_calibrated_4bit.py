"""Is a 4-bit base that was rounded with calibration better, and otherwise an ordinary bitsandbytes model?"""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from quantkit import AdapterPlan, PlanContext, QuantizationPlan, Stage
from quantkit.backends import keep_layout
from quantkit.calibration import Calibration, QuantizationWork
from quantkit.data.arithmetic import arithmetic_data
from quantkit.errors import UsageError
from quantkit.headers import read_stored_weights
from quantkit.layers import linear_layers
from quantkit.measure import check_model, loaded_spec
from quantkit.methods import installed_methods
from quantkit.modeling import load_base, load_tokenizer
from tests.bench import difference, logits, plan_for, train_step
from tests.plugins.test_contract import NamedContract

METHODS = installed_methods()
VARIANTS = [("QLORA", {}), ("BNB4BIT", {}), ("BNB4BIT", {"quant_type": "fp4", "double_quant": True})]


class TestQloraCalibrated(NamedContract):
    method = "QLORA"
    options: ClassVar[dict[str, object]] = {"calibrated": True}


@pytest.fixture(scope="module")
def rows(tiny_model: Path) -> tuple[Calibration, list[list[int]]]:
    """Rendered arithmetic rows: some to calibrate on, others held out."""
    tokenizer = load_tokenizer(str(tiny_model))
    data = arithmetic_data(train=96, held_out=64)

    def render(items: list[dict[str, str]]) -> list[list[int]]:
        turns = [[{"role": "user", "content": i["question"]}, {"role": "assistant", "content": i["answer"]}] for i in items]
        return [tokenizer(tokenizer.apply_chat_template(turn, tokenize=False))["input_ids"] for turn in turns]

    return Calibration(tuple(map(tuple, render(data.train))), "arithmetic rows"), render(data.unseen_numbers)


def load(path: Path, plan: QuantizationPlan, calibration: Calibration | None = None, **work: Any) -> Any:
    return load_base(
        str(path), plan=plan, methods=METHODS, device="cpu", calibration=calibration, work=QuantizationWork(**work)
    )


@torch.no_grad()
def held_out_loss(model: Any, rows: list[list[int]]) -> float:
    model.eval()
    tokens = [torch.tensor([row]) for row in rows]
    losses = [float(model(input_ids=item, labels=item).loss) * (item.shape[1] - 1) for item in tokens]
    return sum(losses) / sum(item.shape[1] - 1 for item in tokens)


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_calibration_takes_back_at_least_half_of_what_rounding_costs(method, options, tiny_model, rows):
    dense = held_out_loss(load(tiny_model, plan_for("NoQuant")), rows[1])
    plain = held_out_loss(load(tiny_model, plan_for(method, **options)), rows[1])
    calibrated = held_out_loss(load(tiny_model, plan_for(method, calibrated=True, **options), rows[0]), rows[1])
    assert calibrated - dense < (plain - dense) / 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_saved_model_loads_plainly_with_the_same_weights(variant, dtype, tiny_model, rows, tmp_path):
    from transformers import AutoModelForCausalLM

    model = load(tiny_model, plan_for(variant[0], calibrated=True, dtype=dtype, **variant[1]), rows[0])
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto", device_map={"": "cpu"})
    keep_layout(again)  # compared without the CPU fast path, which rounds absmax on loading whoever chose it
    assert difference(logits(again), logits(model)) == 0
    layers = linear_layers(again)
    for name, layer in linear_layers(model).items():
        assert torch.equal(layer.weight.data, layers[name].weight.data)
        state, other = (item.weight.quant_state.as_dict(packed=True) for item in (layer, layers[name]))
        assert all(torch.equal(value, other[key]) for key, value in state.items())
        assert vars(layer).keys() >= vars(layers[name]).keys() - {"_is_hf_initialized"}


def test_the_model_consists_of_the_same_tensors_as_plain_nf4(tiny_model, rows):
    def shapes(plan: QuantizationPlan, calibration: Calibration | None) -> dict[str, Any]:
        tensors = load(tiny_model, plan, calibration).state_dict()
        return {name: (item.shape, item.dtype) for name, item in tensors.items() if "quant_state" not in name}

    assert shapes(plan_for("QLORA"), None) == shapes(plan_for("QLORA", calibrated=True), rows[0])


@pytest.mark.parametrize("kind", ["LoRa", "DoRa", "VeRa"])
def test_adapters_of_every_kind_learn_on_it(kind, tiny_model, rows):
    from quantkit.adapters import attach_adapter

    plan = plan_for("BNB4BIT", kind, calibrated=True)
    model = METHODS.prepare_model(plan, load(tiny_model, plan, rows[0]))
    model = attach_adapter(model, plan.adapter, seed=1)
    before = logits(model)
    assert train_step(model) == []
    assert difference(before, logits(model)) > 1e-3
    check_model(model, loaded_spec(plan))


def test_the_same_rows_give_the_same_weights_and_others_give_others(tiny_model, rows):
    plan = plan_for("QLORA", calibrated=True)
    fewer = Calibration(rows[0].rows[:16], "fewer rows")
    first, again, other = (logits(load(tiny_model, plan, item)) for item in (rows[0], rows[0], fewer))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_killed_run_goes_on_at_the_last_finished_block_and_ends_the_same(tiny_model, rows, tmp_path):
    plan = plan_for("QLORA", calibrated=True)
    reports: list[Any] = []

    def kill(report: Any) -> None:
        reports.append(report)
        if report.index == 1 and not report.resumed:
            raise KeyboardInterrupt

    whole = logits(load(tiny_model, plan, rows[0]))
    with pytest.raises(KeyboardInterrupt):
        load(tiny_model, plan, rows[0], folder=tmp_path / "blocks", report=kill)
    assert torch.equal(logits(load(tiny_model, plan, rows[0], folder=tmp_path / "blocks", report=kill)), whole)
    assert [report.resumed for report in reports] == [False, False, True, True, False, False]


def test_layers_on_the_ignore_list_stay_dense_and_load_so(tiny_model, rows, tmp_path):
    from transformers import AutoModelForCausalLM

    plan = plan_for("QLORA", calibrated=True, dtype="bfloat16")
    model = METHODS.quantize_model(
        plan,
        load(tiny_model, plan_for("NoQuant", dtype="bfloat16")),
        rows[0],
        QuantizationWork(ignore=["model.layers.3.mlp.down_proj"]),
    )
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto", device_map={"": "cpu"})
    dense = [name for name, part in again.named_modules() if type(part) is torch.nn.Linear]
    assert dense == ["model.layers.3.mlp.down_proj", "lm_head"]
    check_model(again, loaded_spec(plan))
    assert read_stored_weights(tmp_path).contradictions(plan.spec) == []
    keep_layout(again)
    assert difference(logits(again), logits(model)) == 0


def test_plans_carry_the_tag_and_ask_for_calibration():
    for method, tags in (("QLORA", ("cal",)), ("BNB4BIT", ("cal",))):
        plan = plan_for(method, calibrated=True)
        assert plan.spec.tags == tags
        assert METHODS.wants_calibration(plan)
        assert not METHODS.wants_calibration(plan_for(method))
        assert METHODS.load_kwargs(plan) == {}
    assert plan_for("BNB4BIT", calibrated=True, double_quant=True, quant_type="fp4").spec.tags == ("fp4", "dq", "cal")


def test_a_finished_model_can_be_stored_in_4_bit_too(tiny_model, rows):
    context = PlanContext(stage=Stage.TRAINED, adapter=AdapterPlan(kind="NoPeft"), compute_dtype="float32")
    plan = METHODS.plan("BNB4BIT", {"calibrated": True}, context)
    base = load(tiny_model, plan_for("BNB4BIT", calibrated=True), rows[0])
    assert torch.equal(logits(load(tiny_model, plan, rows[0])), logits(base))


def test_without_calibration_rows_it_is_refused(tiny_model):
    with pytest.raises(UsageError, match="QLORA quantizes with calibration data; none was given"):
        load(tiny_model, plan_for("QLORA", calibrated=True))


def test_a_model_that_is_4_bit_already_is_not_quantized_again(tiny_model, rows):
    plan = plan_for("QLORA", calibrated=True)
    with pytest.raises(UsageError, match=r"cannot be quantized: model\.layers\.0\.self_attn\.q_proj \(Linear4bit\)"):
        METHODS.quantize_model(plan, load(tiny_model, plan_for("QLORA")), rows[0])


def test_adapters_are_trained_on_the_stored_base_in_any_data_type_without_calibrating_again(tiny_model, rows, tmp_path):
    from quantkit.adapters import attach_adapter

    load(tiny_model, plan_for("QLORA", calibrated=True, dtype="bfloat16"), rows[0]).save_pretrained(tmp_path)
    plan = plan_for("QLORA", calibrated=True, dtype="float32")
    model = METHODS.prepare_model(plan, load(tmp_path, plan))
    assert {layer.compute_dtype for layer in linear_layers(model).values()} == {torch.float32}
    model = attach_adapter(model, plan.adapter, seed=1)
    assert train_step(model) == []
    adapted = logits(model)
    assert difference(logits(METHODS.post_train_merge(plan, model)), adapted) < 1e-4
