"""What one prompt at a time takes, and what an artifact weighs: measured, and None where it was not."""

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import UsageError
from quantkit.evaluation import decoding
from quantkit.evaluation.cost import (
    bits_per_weight,
    count_weights,
    latency_prompts,
    measure_speed,
    percentiles,
    size_on_disk,
)
from quantkit.evaluation.generation import generate, timed_answer
from quantkit.files import new_folder
from quantkit.methods import installed_methods
from quantkit.modeling import ModelSource, load_source
from quantkit.plan import AdapterPlan, PlanContext
from quantkit.spec import QuantizationSpec

PROMPTS = [[1, 40 + at, 50, 60 + at] for at in range(12)]


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(tiny_model)


def test_speed_is_that_of_one_prompt_at_a_time_after_a_warm_up(loaded: tuple[Any, Any]) -> None:
    model, shapes = loaded[0], []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    try:
        speed = measure_speed(*loaded, PROMPTS, count=3, max_new_tokens=10)
    finally:
        hook.remove()
    assert {rows for rows, _ in shapes} == {1}
    assert [width for _, width in shapes if width > 1] == [4] * 4
    assert speed.latency_n == 3
    assert set(speed.latency_s) == {"p50"}
    assert speed.prefill_tokens_per_s is not None
    assert speed.decode_tokens_per_s is not None
    assert min(speed.prefill_tokens_per_s, speed.decode_tokens_per_s) > 0


@pytest.mark.parametrize("in_slots", [True, False])
def test_the_first_token_is_timed_apart_whichever_way_the_model_is_run(
    loaded: tuple[Any, Any], in_slots: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = generate(*loaded, [PROMPTS[0]], batch_size=1, max_new_tokens=10)[0]
    if not in_slots:
        monkeypatch.setattr(decoding, "can_use_slots", lambda *_: False)
    answer, first_s, whole_s = timed_answer(*loaded, PROMPTS[0], max_new_tokens=10)
    assert answer == plain
    assert len(answer.tokens) > 1
    assert 0 < first_s < whole_s


def test_a_model_that_says_nothing_has_no_decoding_speed(loaded: tuple[Any, Any]) -> None:
    speed = measure_speed(*loaded, PROMPTS, count=2, max_new_tokens=1)
    assert speed.decode_tokens_per_s is None
    assert speed.prefill_tokens_per_s is not None


def test_no_prompts_are_timed_where_none_are_wanted(loaded: tuple[Any, Any]) -> None:
    speed = measure_speed(*loaded, PROMPTS, count=0, max_new_tokens=1)
    assert (speed.prefill_tokens_per_s, speed.latency_s, speed.latency_n) == (None, {}, 0)


def test_a_percentile_stands_only_where_there_are_enough_measurements() -> None:
    assert set(percentiles([1.0] * 9)) == {"p50"}
    assert set(percentiles([1.0] * 99)) == {"p50", "p90"}
    assert percentiles([float(value) for value in range(100)]) == {"p50": 49.0, "p90": 89.0, "p99": 98.0}


def test_as_many_prompts_are_timed_as_wanted_but_no_more_than_there_are() -> None:
    assert [latency_prompts(wanted, 30) for wanted in (None, 0, 5, 100)] == [2, 0, 5, 30]
    with pytest.raises(UsageError, match="latency_prompts is -1; it must be at least 0"):
        latency_prompts(-1, 30)


def test_a_timed_answer_that_does_not_fit_the_memory_is_named(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(decoding.SlotDecoder, "run", full)
    with pytest.raises(UsageError, match="a prompt of 4 tokens and its answer of up to 6 do not fit into the memory of cpu"):
        timed_answer(*loaded, PROMPTS[0], max_new_tokens=6)


def test_the_size_of_a_folder_is_that_of_its_own_files(tmp_path: Path) -> None:
    with new_folder(tmp_path / "ours") as folder:
        (folder / "a").write_bytes(b"x" * 10)
        (folder / "b").write_bytes(b"x" * 5)
    assert size_on_disk(tmp_path / "ours") == 15
    (tmp_path / "foreign" / ".cache").mkdir(parents=True)
    (tmp_path / "foreign" / ".cache" / "a").write_bytes(b"x" * 10)
    (tmp_path / "foreign" / "b").write_bytes(b"x" * 7)
    assert size_on_disk(tmp_path / "foreign") == 7
    assert size_on_disk(str(tmp_path / "foreign" / "b")) == 7


def test_bits_of_a_dense_model_are_those_of_its_files(loaded: tuple[Any, Any], tiny_model: Path) -> None:
    model, _ = loaded
    assert count_weights(model) == sum(parameter.numel() for parameter in model.parameters())
    assert bits_per_weight(model, source(tiny_model, "NoQuant")) == 16.0


@pytest.mark.parametrize("compute_dtype", ["bfloat16", "float32"])
def test_layers_quantized_while_loading_are_counted_with_their_scales_and_the_rest_as_stored(
    compute_dtype: str, tiny_model: Path
) -> None:
    nf4 = source(tiny_model, "QLORA", compute_dtype=compute_dtype)
    bits = bits_per_weight(load_source(nf4, installed_methods(), device="cpu"), nf4)
    weights = [parameter.numel() for parameter in dense_model(tiny_model).parameters() if parameter.ndim == 2]
    linear, rest = sum(weights) - 512 * 128, count_weights(dense_model(tiny_model)) - sum(weights) + 512 * 128
    # 4 bits of code and 8 of absmax per 64 where quantized, 16 elsewhere; tables of 28 small layers come on top
    least = (linear * (4 + 8 / 64) + rest * 16) / (linear + rest)
    assert bits is not None
    assert least < bits < least + 0.5


def test_an_adapters_bits_are_counted_with_its_bases(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=8, target_modules="all-linear"))
    peft.save_pretrained(tmp_path / "adapter")
    whole = source(tmp_path / "adapter", "NoQuant", kind="adapter", base=str(tiny_model))
    base, both = count_weights(dense_model(tiny_model)), count_weights(peft)
    assert both == base + sum(parameter.numel() for name, parameter in peft.named_parameters() if "lora_" in name)
    own = {parameter.element_size() for name, parameter in peft.named_parameters() if "lora_" in name}
    assert own == {4}
    assert bits_per_weight(peft, whole) == pytest.approx((16 * base + 32 * (both - base)) / both, abs=1e-3)


def test_bits_of_pickled_weights_are_not_guessed(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert bits_per_weight(loaded[0], source(tmp_path, "NoQuant")) is None


def source(path: Path, method: str, *, compute_dtype: str = "bfloat16", **changes: Any) -> ModelSource:
    plan = installed_methods().plan(method, {}, PlanContext(adapter=AdapterPlan(r=8), compute_dtype=compute_dtype))
    spec: QuantizationSpec = plan.spec
    return ModelSource(path=str(path), plan=plan, spec=spec, **changes)


def dense_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)
