"""Is as little computed again as fits, and nothing where nothing has to be?"""

from dataclasses import replace
from itertools import pairwise

import pytest

from quantkit.forecasting import CONSTANTS, read_shape
from quantkit.forecasting.choice import chosen, least_recompute, step_bytes
from quantkit.forecasting.forecast import forecast_run
from quantkit.forecasting.timing import flops_per_token
from quantkit.recompute import Recompute
from tests.forecasting.runs import NF4, settings

SHAPE = read_shape("meta-llama/Llama-3.2-3B")
START = settings(NF4, rows=4, length=1024)
WITHOUT = forecast_run(SHAPE, START, CONSTANTS)
PAIRS = [(full, part) for full in range(SHAPE.blocks + 1) for part in range(SHAPE.blocks + 1 - full)]
ALL = [
    forecast_run(SHAPE, START.with_changes(recompute=Recompute(full, part).text(SHAPE.blocks)), CONSTANTS)
    for full, part in PAIRS
]
SMALLEST = min(map(step_bytes, ALL))
SHARES = (0.02, 0.2, 0.5, 0.7, 0.97)


def between(share):
    """Return a room so far between the smallest step and the one that computes nothing again."""
    return round(SMALLEST + share * (step_bytes(WITHOUT) - SMALLEST))


def cost(forecast):
    return flops_per_token(SHAPE, forecast.settings)


@pytest.mark.parametrize("share", SHARES)
def test_of_all_numbers_of_blocks_and_mlps_that_fit_the_cheapest_are_taken(share):
    room = between(share)
    found = least_recompute(SHAPE, START, CONSTANTS, lambda other: step_bytes(other) <= room)
    assert step_bytes(found) <= room
    assert cost(found) == min(cost(other) for other in ALL if step_bytes(other) <= room)


def test_less_room_never_means_less_computed_again():
    found = [least_recompute(SHAPE, START, CONSTANTS, lambda other: step_bytes(other) <= between(share)) for share in SHARES]  # noqa: B023
    assert all(cost(less) >= cost(more) for less, more in pairwise(found))


def test_a_step_that_fits_computes_nothing_again_however_narrowly():
    assert chosen(WITHOUT, step_bytes(WITHOUT)) == WITHOUT
    assert step_bytes(WITHOUT) * CONSTANTS.high > step_bytes(WITHOUT)


def test_a_step_that_does_not_fit_computes_so_much_again_that_its_interval_does():
    room = step_bytes(WITHOUT) - 1
    found = chosen(WITHOUT, room)
    assert found.settings.recompute != "none"
    assert step_bytes(found) * CONSTANTS.high <= room
    just = least_recompute(SHAPE, START, CONSTANTS, lambda other: step_bytes(other) <= room)
    assert cost(WITHOUT) < cost(just) < cost(found)


def test_where_no_interval_fits_the_forecast_itself_has_to_and_else_the_smallest_is_named():
    found = chosen(WITHOUT, round(SMALLEST * 1.001))
    assert step_bytes(found) <= round(SMALLEST * 1.001)
    assert step_bytes(chosen(WITHOUT, 1)) == SMALLEST


def test_what_a_checkpoint_recorded_is_kept_where_it_fits():
    room = step_bytes(WITHOUT) * 2
    assert chosen(WITHOUT, room, recorded="full:3").settings.recompute == "full:3"
    assert chosen(WITHOUT, room, recorded="none").settings.recompute == "none"
    fresh = chosen(WITHOUT, between(0.5))
    assert chosen(WITHOUT, between(0.5), recorded="none") == fresh


def test_the_last_block_is_not_computed_again_where_the_backward_pass_is_the_peak():
    assert chosen(WITHOUT, 1).settings.recompute in ("full", f"full:{SHAPE.blocks - 1}")
    begins = {text: forecast_run(SHAPE, START.with_changes(recompute=text)).moment("backward") for text in ("full:27", "full")}
    assert begins["full:27"].size_bytes < begins["full"].size_bytes


def test_offloaded_activations_leave_nothing_to_choose():
    offloaded = forecast_run(SHAPE, START.with_changes(offload=True), CONSTANTS)
    assert chosen(offloaded, 1).settings.recompute == "none"
    assert least_recompute(SHAPE, offloaded.settings, CONSTANTS, lambda _: False) is None
    assert least_recompute(SHAPE, offloaded.settings, CONSTANTS, lambda _: True).settings.recompute == "none"


def test_mlps_are_not_chosen_alone_in_a_family_that_has_no_module_for_them():
    shape = replace(SHAPE, linears=tuple(layer for layer in SHAPE.linears if "self_attn" in layer.name))
    without = forecast_run(shape, START, CONSTANTS)
    found = least_recompute(shape, START, CONSTANTS, lambda other: step_bytes(other) < step_bytes(without))
    assert found.settings.recompute.startswith("full:")
    assert forecast_run(shape, START.with_changes(recompute="selective"), CONSTANTS).moments == without.moments
