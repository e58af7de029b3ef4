"""Is a forecast the sum of what lives at each moment of a run, on each device?"""

import json

import pytest

from quantkit.config import RunConfig
from quantkit.errors import UsageError
from quantkit.forecasting import Constants, RunSettings, forecast_run, read_shape
from quantkit.forecasting.items import artifact_bytes
from quantkit.forecasting.optimizers import optimizer_states
from quantkit.plan import AdapterPlan
from quantkit.spec import QuantizationSpec
from tests.forecasting.runs import DENSE, FULL, INT8, LORA, NF4, plan, settings

SHAPE = read_shape("meta-llama/Llama-3.2-3B")
PARAMETERS = 3_212_749_824


def items(spec=DENSE, adapter=LORA, moment="step", **changes):
    return forecast_run(SHAPE, settings(spec, adapter, **changes)).moment(moment).items


def test_the_head_of_a_tied_model_is_counted_once_and_embeddings_stay_in_sixteen_bits():
    assert items()["weights"] + items()["embeddings, head, norms"] == 2 * PARAMETERS
    assert items(NF4)["embeddings, head, norms"] == items()["embeddings, head, norms"] == 2 * (128256 * 3072 + 57 * 3072)


def test_nf4_with_double_quantization_takes_its_codes_scales_and_tables():
    weights = PARAMETERS - 128256 * 3072 - 57 * 3072
    blocks, layers = weights // 64, 28 * 7
    assert items(NF4)["nf4 weights"] == weights // 2 + blocks + 4 * blocks // 256 + layers * (4 + 4 * 256 + 4 * 16)


def test_training_all_weights_takes_sixteen_bytes_a_parameter_beside_activations():
    step = items(DENSE, FULL, optim="adamw_torch_fused")
    kept = sum(size for name, size in step.items() if name != "matrix products' workspace")
    assert kept == 16 * PARAMETERS


@pytest.mark.parametrize(
    ("optim", "on_gpu", "on_host"), [("adamw_torch", 8, 0), ("adamw_bnb_8bit", 2.03, 0), ("paged_adamw_32bit", 0, 8)]
)
def test_states_of_the_optimizer_are_counted_where_they_lie(optim, on_gpu, on_host):
    found = forecast_run(SHAPE, settings(optim=optim))
    trained = found.trained_parameters
    assert found.moment("step").items["optimizer states"] / trained == pytest.approx(on_gpu, abs=0.01)
    assert found.host_bytes / trained == pytest.approx(on_host, abs=0.01)


def test_an_optimizer_that_is_not_known_is_counted_as_adamw_and_said_to_be():
    assert optimizer_states("muon").numbers == 2
    assert "muon is not known here" in forecast_run(SHAPE, settings(optim="muon")).notes[0]
    assert [optimizer_states(name).numbers for name in ("sgd", "adafactor", "lion_32bit", "ademamix")] == [0, 0.01, 1, 3]


def test_gradients_wait_through_the_forward_pass_only_when_they_accumulate():
    assert "gradients" not in items(moment="loss")
    assert items(moment="loss", accumulation=4)["gradients"] == items()["gradients"]


def test_the_peak_is_the_largest_moment_and_what_is_not_counted_stands_beside_it():
    constants = Constants(cuda_context_bytes=1000, cuda_slack=0.5, low=0.9, high=1.2)
    found = forecast_run(SHAPE, settings(merges=False), constants)
    largest = max(moment.size_bytes for moment in found.moments)
    assert found.allocated_bytes == largest
    assert found.peak_bytes == 1000 + largest + round(largest / 2)
    assert found.interval == (round(0.9 * found.peak_bytes), round(1.2 * found.peak_bytes))


def test_of_a_batch_larger_than_any_measured_on_a_cpu_it_is_said_that_the_c_library_may_hold_more():
    large = {"rows": 8, "tokens": 4096, "length": 512}
    assert "4,096 tokens is larger than any that the interval was measured on (1,055)" in str(
        forecast_run(SHAPE, settings(device="cpu", **large)).notes
    )
    assert not forecast_run(SHAPE, settings(device="cpu", **large | {"tokens": 1055})).notes
    assert not forecast_run(SHAPE, settings(device="cuda", **large)).notes


def test_a_run_folds_in_tensor_by_tensor_and_only_in_memory_holds_the_model_in_float32():
    ways = ({"merges": False}, {"merges": True}, {"merges": True, "folds_in_memory": True})
    kept, folded, whole = (forecast_run(SHAPE, settings(NF4, **way)) for way in ways)
    names = [{moment.name for moment in found.moments} for found in (kept, folded, whole)]
    assert names[1] - names[0] == {"observe", "merge", "compare"}
    assert names[2] - names[0] == {"merge", "save"}
    assert whole.moment("merge").items["the folded model in float32"] == 4 * PARAMETERS
    assert folded.to_dict()["streaming_merge_bytes"] == folded.moment("merge").size_bytes < whole.moment("merge").size_bytes / 5
    assert folded.moment("compare").size_bytes < 4 * PARAMETERS / 2
    assert folded.disk_bytes > 2 * PARAMETERS > kept.disk_bytes


@pytest.mark.parametrize(
    ("changes", "spec", "in_memory"),
    [
        ({}, NF4, False),
        ({"merge": "base"}, NF4, False),
        ({"merge": "requantized"}, NF4, True),
        ({"init_lora_weights": "pissa"}, DENSE, True),
        ({}, NF4.with_changes(format="torchao"), True),
        ({"merge": "base"}, NF4.with_changes(format="torchao"), False),
        ({"merge_after_train": False, "merge": "requantized"}, NF4, False),
    ],
)
def test_what_files_do_not_tell_is_folded_in_in_memory(changes, spec, in_memory):
    config = RunConfig(model_name_or_path="model", lora_r=16, **changes)
    made = plan(spec, config.adapter_plan(16))
    assert RunSettings.of(config, made, device="cpu", arithmetic="float32").folds_in_memory is in_memory


@pytest.mark.parametrize(
    ("merge", "spec", "in_memory"), [("base", NF4, False), ("base", DENSE, True), ("dequantized", NF4, True)]
)
def test_a_merge_of_a_methods_own_is_in_memory_unless_it_goes_into_the_original_base(merge, spec, in_memory):
    config = RunConfig(model_name_or_path="model", merge=merge)
    found = RunSettings.of(config, plan(spec), device="cpu", arithmetic="float32", folds_exactly=False)
    assert found.folds_in_memory is in_memory


def test_a_trained_heads_gradient_lies_where_the_head_is_and_counts_once_where_weights_are_gathered():
    """It is formed with the loss, before the backward pass; its sum, and that scaled, stand beside all activations."""
    how = {"adapter": FULL, "merges": False, "rows": 16, "length": 4096}
    head, name = 4 * SHAPE.vocabulary * SHAPE.width, "the head's gradient"
    one = forecast_run(SHAPE, settings(**how)).moment("backward").items
    assert one[name] == 2 * head
    assert "gradients" not in one
    mapped = forecast_run(SHAPE, settings(**how, strategy="device_map", processes=2)).devices
    assert [device["items"][name] for device in mapped] == [0, 2 * head]
    split = forecast_run(SHAPE, settings(**how, strategy="fsdp", processes=2)).moment("backward").items
    assert name not in split
    assert split["gradients of gathered weights"] > 2 * head


def test_of_several_gpus_ddp_copies_fsdp_splits_what_is_frozen_and_device_map_shares_blocks():
    one = forecast_run(SHAPE, settings(NF4, merges=False))
    found = {
        name: forecast_run(SHAPE, settings(NF4, merges=False, strategy=name, processes=4))
        for name in ("ddp", "fsdp", "device_map")
    }
    assert one.devices == ()
    assert all(len(item.devices) == 4 for item in found.values())
    frozen = one.moment("step").items["nf4 weights"]
    assert [item.moment("step").items["nf4 weights"] for item in found.values()] == [frozen, -(-frozen // 4), frozen // 4]
    assert found["ddp"].moment("step").items["buckets of gradients"] == one.moment("step").items["gradients"]
    assert found["fsdp"].moment("step").items["adapters"] == one.moment("step").items["adapters"]
    assert found["fsdp"].host_bytes > 4 * frozen
    loss = [device["items"].get("logits and loss", 0) for device in found["device_map"].devices]
    assert loss[:3] == [0, 0, 0]


def test_where_all_weights_are_trained_fsdp_splits_gradients_and_states_with_them():
    full = settings(DENSE, FULL, processes=4, strategy="ddp", recompute="none", arithmetic="bfloat16")
    copied, split = forecast_run(SHAPE, full), forecast_run(SHAPE, full.with_changes(strategy="fsdp"))
    before, after = copied.moment("step").items, split.moment("step").items
    for name in ("weights, all of them trained", "gradients", "optimizer states"):
        assert after[name] == -(-before[name] // 4)
    assert "weights gathered" not in after
    assert "buckets of gradients" not in after
    working = split.moment("backward").items
    assert working["weights gathered"] > working["gradients of gathered weights"] / 2 > 4 * SHAPE.embeddings / 2
    assert split.moment("loss").items["activations"] < copied.moment("loss").items["activations"]
    assert split.host_bytes == 4 * 4 * PARAMETERS


def test_a_base_that_is_quantized_first_is_held_dense_beside_one_blocks_statistics():
    spec = QuantizationSpec(
        method="GPTQ", weights_bits=4, weights_dtype="int4", format="compressed-tensors", group_size=128, symmetric=True
    )
    found = forecast_run(SHAPE, settings(spec, calibration_tokens=1000))
    quantize = found.moment("quantize").items
    assert quantize["the base, dense"] == 2 * PARAMETERS
    assert quantize["inputs of a block"] == 2 * 4 * 1000 * 3072
    block = [layer for layer in SHAPE.linears if ".0." in layer.name]
    assert quantize["a block with its statistics"] == sum(8 * layer.weights + 4 * layer.inputs**2 for layer in block)
    assert found.disk_bytes > forecast_run(SHAPE, settings()).disk_bytes
    assert "quantize" not in {moment.name for moment in forecast_run(SHAPE, settings(NF4)).moments}


def test_several_processes_want_to_know_how_they_share():
    with pytest.raises(UsageError, match="2 processes need a strategy"):
        settings(processes=2)
    with pytest.raises(UsageError, match="strategy is 'ring'"):
        settings(strategy="ring")
    with pytest.raises(UsageError, match="rows is 0"):
        settings(rows=0)
    with pytest.raises(UsageError, match="arithmetic is 'int8'"):
        settings(arithmetic="int8")


def test_settings_are_those_of_the_run_and_its_plan():
    config = RunConfig(
        model_name_or_path="x", gradient_checkpointing=True, per_device_train_batch_size=3, loss_positions="all", max_steps=7
    )
    found = RunSettings.of(config, plan(optim="paged_adamw_32bit"), device="cuda:0", arithmetic="bfloat16", tokens=100)
    assert (found.device, found.recompute, found.logits, found.optim) == ("cuda", "full", "all", "paged_adamw_32bit")
    assert (found.rows, found.batch_tokens, found.steps, found.strategy) == (3, 100, 7, "single")
    assert RunSettings.of(config, plan(), device="cuda", arithmetic="bfloat16", processes=2).strategy == "ddp"
    split = config.with_changes(sharding="fsdp2")
    assert RunSettings.of(split, plan(), device="cuda", arithmetic="bfloat16", processes=2).strategy == "fsdp"


def test_frozen_weights_are_held_as_steps_hold_them():
    loaded_wide = plan(compute_dtype="float32")
    half = RunSettings(plan=loaded_wide, arithmetic="bfloat16")
    assert (half.held_dtype("bfloat16"), half.held_dtype("float16"), half.hidden_bytes) == ("bfloat16", "float32", 4)
    single = RunSettings(plan=plan(), arithmetic="float32")
    assert (single.held_dtype("bfloat16"), single.hidden_bytes) == ("float32", 4)


def test_adapters_are_counted_as_peft_makes_them():
    trained = {kind: forecast_run(SHAPE, settings(adapter=AdapterPlan(kind=kind, r=4))).trained_parameters for kind in KINDS}
    a_and_b = sum(4 * (layer.inputs + layer.outputs) for layer in SHAPE.linears)
    outputs = sum(layer.outputs for layer in SHAPE.linears)
    assert trained == {"LoRa": a_and_b, "DoRa": a_and_b + outputs, "VeRa": outputs + 4 * len(SHAPE.linears)}
    with pytest.raises(UsageError, match="'nowhere' matches no linear layer of this llama model"):
        forecast_run(SHAPE, settings(adapter=AdapterPlan(target_modules=("nowhere",))))
    saved = AdapterPlan(r=4, modules_to_save=("embed_tokens",))
    assert forecast_run(SHAPE, settings(adapter=saved)).trained_parameters == a_and_b + 128256 * 3072
    with pytest.raises(UsageError, match="'norm' is no linear layer or embedding"):
        forecast_run(SHAPE, settings(adapter=AdapterPlan(r=4, modules_to_save=("norm",))))


KINDS = ("LoRa", "DoRa", "VeRa")


def test_a_forecast_is_plain_json_data():
    data = forecast_run(SHAPE, settings(INT8, strategy="fsdp", processes=2)).to_dict()
    assert json.loads(json.dumps(data)) == data
    assert artifact_bytes(SHAPE, settings(INT8)) == pytest.approx(SHAPE.linear_weights + 2 * SHAPE.dense_parameters, rel=0.01)


def test_a_weight_that_is_cast_lies_there_twice_the_largest_at_the_start_and_the_last_at_the_end():
    found = forecast_run(
        SHAPE, settings(device="cpu", arithmetic="bfloat16", **{"plan": plan(DENSE, LORA, compute_dtype="float32")})
    )
    start, end = (found.moment(name).items["the tensor being cast"] for name in ("start", "end"))
    assert (start, end) == (2 * 128256 * 3072, 2 * SHAPE.linears[-1].weights)
    assert "end" not in {moment.name for moment in forecast_run(SHAPE, settings()).moments}


def test_dora_counts_its_gradient_times_the_factors_and_the_norm_it_starts_from():
    widest = max(layer.weights for layer in SHAPE.linears)
    dora, lora = (forecast_run(SHAPE, settings(NF4, AdapterPlan(kind=kind, r=16))) for kind in ("DoRa", "LoRa"))
    assert lora.moment("backward").items["dequantized weight"] == 2 * widest
    assert dora.moment("backward").items["dequantized weight"] == 2 * widest + 2 * 512 * 8192
    assert dora.moment("start").items["a weight's norm"] == 4 * 4 * widest


def test_of_models_that_stay_a_cpu_holds_nothing_beyond() -> None:
    """Folded in in memory, a float32 copy of the model would otherwise be told a quarter too large."""
    forecast = forecast_run(SHAPE, settings(device="cpu", merges=True, folds_in_memory=True))
    merged = forecast.moment("merge")
    assert merged.size_bytes - merged.passing_bytes == 4 * SHAPE.parameters
    assert forecast.held(merged) == round(forecast.constants.cpu_slack * merged.passing_bytes)
    saved = forecast.moment("save")  # in its storage type, and loaded again in float32
    assert saved.size_bytes - saved.passing_bytes == (2 + 4) * SHAPE.parameters
