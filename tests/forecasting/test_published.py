"""Do the formulas meet what others measured on GPUs, without a constant fitted to them?"""

import pytest

from quantkit.forecasting.published import FIGURES, TOLERANCE, compare

GOALS = {
    "Qwen3-8B LoRa-256": 20.17,
    "Qwen3-8B DoRa-256": 20.18,
    "Qwen3-8B VeRa-512": 16.19,
    "Qwen3-8B QLoRA-256": 7.61,
    "Llama-3.2-3B full, packed, compiled": 51.0,
    "… with chunked cross entropy": 42.9,
    "Llama-3.2-3B QLoRA-64": 4.6,
}


def test_every_figure_that_is_a_goal_stands_in_the_table_with_its_source():
    table = {figure.name: figure for figure in FIGURES}
    assert {name: table[name].gib for name in GOALS} == GOALS
    assert all(figure.source and figure.stated for figure in FIGURES)


@pytest.mark.parametrize("name", GOALS)
def test_the_forecast_is_within_fifteen_hundredths_of_a_published_figure(name):
    found = compare(next(figure for figure in FIGURES if figure.name == name))
    assert abs(found.difference) <= TOLERANCE == 0.15, f"{found.gib:.2f} GiB against {found.figure.gib}"


def test_a_figure_that_is_not_met_is_kept_with_the_reason():
    lost = [found for found in map(compare, FIGURES) if not found.met]
    assert [found.figure.name for found in lost] == ["Qwen3-8B QLoRA-256, by the script"]
    assert all(found.figure.reason for found in lost)
    weights = lost[0].forecast.moment("step").items
    assert weights["nf4 weights"] + weights["embeddings, head, norms"] > lost[0].figure.gib * 2**30
