"""The fidelity report says what was lost, and judges it by what the fine-tune had gained."""

from dataclasses import replace

import pytest

from quantkit.data.encode import EncodedRow
from quantkit.errors import UsageError
from quantkit.fidelity import Fidelity
from quantkit.merging.report import MergeReport, ReportRows, observe

NEAR = Fidelity(256, 0.1, 0.01, 1e-4, 1.0)
REPORT = MergeReport(
    policy="dequantized",
    rows=ReportRows((), "rows", held_out=True).to_dict(),
    response_tokens=100,
    reference_dtype="float32",
    stored=NEAR,
    as_loaded=NEAR,
    arithmetic=NEAR,
    loss_base=2.0,
    loss_adapter=1.0,
    loss_merged=1.0,
    loss_merged_as_loaded=1.0,
)


def test_the_gain_that_is_kept_is_a_share_of_what_the_fine_tune_took_off_the_loss() -> None:
    assert REPORT.gain == 1.0
    assert replace(REPORT, loss_merged=1.25).gain_kept == 0.75
    assert replace(REPORT, loss_merged=0.9).gain_kept == pytest.approx(1.1)
    data = replace(REPORT, loss_merged=1.25).to_dict()
    assert data["gain_kept"] == 0.75
    assert data["loss"]["merged"] == 1.25
    assert data["stored"]["mean_kl"] == 1e-4
    assert "75.0% of the gain kept" in replace(REPORT, loss_merged=1.25).lines()[-1]


def test_losing_more_than_the_limit_is_a_reason_to_mark() -> None:
    assert REPORT.judge(0.1) == []
    assert replace(REPORT, loss_merged=1.09).judge(0.1) == []
    worse = replace(REPORT, loss_merged=1.3)
    assert replace(worse, policy="base").judge(0.2) == ["30% of the fine-tune's gain is lost, more than 20%"]
    (reason,) = replace(worse, policy="dequantized").judge(0.2)
    assert "rounded away in 16 bits: store float32 (save_dtype), or keep the adapter" in reason


def test_differences_of_less_than_two_percent_of_perplexity_are_not_judged() -> None:
    small = replace(REPORT, loss_base=1.04, loss_merged=1.018)
    assert small.gain_kept == pytest.approx(0.55)
    assert small.judge(0.1) == []


def test_where_nothing_was_gained_the_distance_from_the_adapter_judges() -> None:
    worse = replace(REPORT, loss_base=0.9)
    assert worse.gain_kept is None
    assert worse.judge(0.1) == []
    far = replace(worse, stored=replace(NEAR, mean_kl=0.62))
    assert far.judge(0.1) == ["the fine-tune gained nothing measurable, and mean KL from the adapter is 0.62 nats, above 0.01"]
    assert "the fine-tune gained nothing there" in worse.lines()[-1]


def test_rows_whose_response_lies_beyond_the_context_cannot_be_compared_on() -> None:
    from transformers import LlamaForCausalLM

    from tests.tiny import tiny_config

    model = LlamaForCausalLM(tiny_config(max_position_embeddings=4, num_hidden_layers=1))
    row = EncodedRow([1, 2, 3, 4, 5, 6], [-100, -100, -100, -100, -100, 6], 1)
    with pytest.raises(UsageError, match="every row is longer than the model's context before its response begins"):
        observe(model, ReportRows((row,), "rows", held_out=True), title="x")


def test_rows_without_a_response_are_refused() -> None:
    from types import SimpleNamespace

    from quantkit.merging.report import choose_rows

    silent = SimpleNamespace(evaluation=[], train=[EncodedRow([1, 2], [-100, -100], 1)], report=SimpleNamespace(source="x"))
    with pytest.raises(UsageError, match="x: no row has a response that models could be compared on"):
        choose_rows(silent, seed=0)  # type: ignore[arg-type]
