"""Are the settings that fit the first in the stated order, and is all said that they give up?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.errors import UsageError
from quantkit.forecasting import CONSTANTS, read_shape
from quantkit.forecasting.constants import GIB
from quantkit.forecasting.fitting import fits, least
from quantkit.forecasting.machine import cpu_flags, expected_dtypes
from quantkit.forecasting.sizes import least_text, parse_bytes
from quantkit.forecasting.timing import flops_per_token, measured_rate, rate_of_tokens, timing
from quantkit.plan import AdapterPlan
from tests.forecasting.runs import FULL, INT8, NF4, plan, settings

SHAPE = read_shape("meta-llama/Llama-3.2-3B")
START = settings(rows=8, length=1024)
NESTED = plan(NF4, optim="paged_adamw_32bit")


def ways_of(start):
    """Return settings with the base dense, in 8 and in 4 bits."""
    held = [plan(), plan(INT8), NESTED]
    changed = [start.with_changes(plan=other.with_changes(adapter=start.adapter)) for other in held]
    return [*changed[:2], changed[2].with_changes(optim=NESTED.optim)]


def first(room_gib, **named):
    return list(fits(SHAPE, START, ways_of(START), round(room_gib * GIB), CONSTANTS, **named))


def test_with_room_nothing_is_given_up():
    found = first(200)
    assert found[0].given_up == ()
    assert found[0].forecast.settings == START


def test_batches_and_recomputing_go_before_the_bases_precision():
    found = first(10)[0]
    assert found.forecast.settings.plan.method == "NoQuant"
    assert found.given_up == ("batches of 1, 8 of them a step", "recompute full:12")


def test_preferring_speed_gives_up_precision_before_recomputing():
    found = first(10, prefer="speed")[0]
    assert found.forecast.settings.plan.method != "NoQuant"
    assert found.forecast.settings.recompute == "none"


def test_rank_goes_before_length_and_only_when_no_base_fits():
    start = settings(adapter=AdapterPlan(r=256), rows=8, length=1024)
    found = next(iter(fits(SHAPE, start, ways_of(start), round(4.5 * GIB), CONSTANTS)))
    assert found.given_up[0] == "the base in nf4 (QLORA)"
    assert found.forecast.settings.adapter.r < 256
    assert found.forecast.settings.adapter.lora_alpha == 32 * found.forecast.settings.adapter.r / 256
    assert found.forecast.settings.length == 1024
    shorter = next(iter(fits(SHAPE, START, ways_of(START), round(3.2 * GIB), CONSTANTS)))
    assert (shorter.forecast.settings.length, shorter.given_up[-1]) == (256, "rows of 256 tokens")


def test_whatever_fits_is_no_larger_than_the_room_and_nothing_fits_nowhere():
    for room in (4.05, 6, 10, 24):
        assert all(found.forecast.peak_bytes <= room * GIB for found in first(room))
    assert first(1) == []


@pytest.mark.parametrize(("name", "recompute"), [("meta-llama/Llama-3.2-3B", "full"), ("meta-llama/Llama-2-7b-hf", "full:31")])
def test_the_least_that_is_told_fits_into_exactly_that_and_into_no_byte_less(name, recompute):
    shape, start = read_shape(name), settings(rows=1, length=512, merges=False, adapter=AdapterPlan(r=6))
    found = least(shape, start, ways_of(start), CONSTANTS)
    room = found.forecast.peak_bytes
    assert found.forecast.settings.recompute == recompute
    assert next(fits(shape, start, ways_of(start), room, CONSTANTS)).forecast.peak_bytes == room
    assert not list(fits(shape, start, ways_of(start), room - 1, CONSTANTS))


@given(st.integers(min_value=1, max_value=1 << 50))
def test_a_least_that_is_told_is_never_rounded_down_and_reads_back(n):
    told = parse_bytes(least_text(n), where="--fit")
    assert n <= told <= n + max(n / 100, 11)


def test_a_run_of_all_weights_may_take_an_optimizer_in_eight_bits():
    start = settings(adapter=FULL, rows=2, merges=False)
    found = next(iter(fits(SHAPE, start, [start], 34 * GIB, CONSTANTS)))
    assert found.forecast.settings.optim == "paged_adamw_8bit"
    assert "optimizer paged_adamw_8bit" in found.given_up


@pytest.mark.parametrize("text", ["", "eight", "-1GiB", "0", "8 giraffes"])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(UsageError, match="an amount of memory is wanted"):
        parse_bytes(text, where="--fit")


@pytest.mark.parametrize("text", ["24", "24b", "0.5"])
def test_an_amount_without_a_unit_is_refused_with_the_one_that_is_likely_meant(text):
    with pytest.raises(UsageError, match=rf"--fit is '{text}', without a unit; write e.g. {text.rstrip('b')}GiB"):
        parse_bytes(text, where="--fit")


def test_training_all_weights_takes_six_operations_a_weight_and_recomputing_two_more():
    linear, head = SHAPE.linear_weights, SHAPE.head.weights
    down = sum(layer.weights for layer in SHAPE.linears if layer.ending == "down_proj")
    attention = 2 * 28 * 24 * 128 * 512
    full = flops_per_token(SHAPE, settings(adapter=FULL))
    assert full == 6 * (linear + head) + 3 * attention
    assert flops_per_token(SHAPE, settings(adapter=FULL, recompute="full")) == full + 2 * (linear - down) + attention
    half = flops_per_token(SHAPE, settings(adapter=FULL, recompute="full:14"))
    assert half == pytest.approx(full + linear - down + attention / 2)
    mlps = sum(layer.weights for layer in SHAPE.linears if layer.ending in ("gate_proj", "up_proj"))
    assert flops_per_token(SHAPE, settings(adapter=FULL, recompute="selective:7")) == pytest.approx(full + mlps / 2)
    assert flops_per_token(SHAPE, settings(NF4, recompute="full")) - flops_per_token(SHAPE, settings(NF4)) == pytest.approx(
        2 * linear + attention
    )  # layers held in four bits, and those with adapters, are computed again to the last
    assert flops_per_token(SHAPE, settings(supervised=128)) < flops_per_token(SHAPE, settings())


def test_time_is_the_arithmetic_by_the_rate():
    given = settings(rows=4, accumulation=2, steps=10, mean_length=100)
    found = timing(SHAPE, given, rate_of_tokens(50, SHAPE, given))
    assert found.tokens_per_s == pytest.approx(50)
    assert found.seconds_of(1) == pytest.approx((800 / 50, 8000 / 50))
    assert timing(SHAPE, given, None).seconds_of(1) == (None, None)


def test_a_rate_is_measured_by_one_product():
    rate = measured_rate("cpu", "float32")
    assert rate.flops_per_s > 1e8
    assert "94% of" in rate.source
    assert "one float32 product here" in rate.source


def test_data_types_are_told_by_the_processors_flags(monkeypatch, tmp_path):
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr("quantkit.forecasting.machine.CPUINFO", file)
    assert cpu_flags() == set()
    for flags, wanted in (("sse", "float32"), ("avx512_bf16", "bfloat16")):
        file.write_text(f"processor : 0\nflags : fpu {flags}\n")
        assert expected_dtypes("cpu") == ("float32", wanted)
    file.write_text("flags : amx_tile amx_bf16\n")
    assert expected_dtypes("cpu") == ("bfloat16", "bfloat16")
