"""Perplexity against the plain formula on whole logits, in one batch, in windows, and cut at the context."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quantkit.data.arithmetic import arithmetic_data
from quantkit.errors import UsageError, VerificationError
from quantkit.evaluation import perplexity
from quantkit.evaluation.perplexity import RowLoss, perplexity_score, row_losses


@dataclass
class Row:
    input_ids: list[int]
    labels: list[int]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


@pytest.fixture(scope="module")
def rows(tiny_model: Path) -> list[Row]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    made = []
    for row in arithmetic_data(train=1).unseen_numbers[:7]:
        question, answer = (tokenizer(row[key])["input_ids"] for key in ("question", "answer"))
        made.append(Row(question + answer, [-100] * len(question) + answer))
    return made


def direct(model: Any, rows: list[Row], *, response_only: bool) -> float:
    import torch

    total, count = 0.0, 0
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0]
        for position in range(1, len(row.input_ids)):
            if not response_only or row.labels[position] != -100:
                total -= float(torch.log_softmax(logits[position - 1], -1)[row.input_ids[position]])
                count += 1
    return math.exp(total / count)


@pytest.mark.parametrize("logits_at_once", [1024, 20, 1])
def test_perplexity_equals_the_plain_formula(
    model: Any, rows: list[Row], logits_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perplexity, "LOGITS_AT_ONCE", logits_at_once)
    losses = row_losses(model, rows, batch_size=3)
    for over in ("response", "all"):
        score = perplexity_score(losses, rows, over=over, vocabulary=512, seed=0)  # type: ignore[arg-type]
        assert score.value == pytest.approx(direct(model, rows, response_only=over == "response"), rel=1e-5)
        assert score.low < score.value < score.high
        assert (score.n, score.coverage) == (7, 1.0)


def test_floors_are_the_vocabulary_and_the_tokens_own_frequencies(model: Any, rows: list[Row]) -> None:
    score = perplexity_score(row_losses(model, rows, batch_size=4), rows, over="all", vocabulary=512, seed=0)
    floors = {floor.name: floor.value for floor in score.floors}
    assert floors["uniform"] == 512.0
    assert 10 < floors["unigram"] < 200
    assert not score.is_floor


def test_tokens_beyond_the_context_lower_the_coverage(model: Any) -> None:
    row = Row([3] * 700, [-100] * 400 + [3] * 300)
    losses = row_losses(model, [row], batch_size=1)
    assert losses[0].cut_tokens == 188
    score = perplexity_score(losses, [row], over="response", vocabulary=512, seed=0)
    assert score.coverage == pytest.approx(112 / 300)


def test_rows_without_a_response_are_an_error() -> None:
    row = Row([1, 2], [-100, -100])
    with pytest.raises(UsageError, match="no response tokens to compute a perplexity over"):
        perplexity_score([RowLoss(1.0, 1, 0.0, 0)], [row], over="response", vocabulary=9, seed=0)


def test_a_loss_that_is_not_finite_is_an_error_with_the_row() -> None:
    row = Row([1, 2], [-100, 2])
    losses = [RowLoss(1.0, 1, 1.0, 1), RowLoss(float("nan"), 1, float("nan"), 1)]
    with pytest.raises(VerificationError, match="the loss of row 1 is not finite"):
        perplexity_score(losses, [row, row], over="all", vocabulary=9, seed=0)


def test_a_ruined_model_has_a_huge_but_writable_perplexity() -> None:
    row = Row([1, 2], [-100, 2])
    score = perplexity_score([RowLoss(5000.0, 1, 5000.0, 1)], [row], over="all", vocabulary=9, seed=0)
    assert score.value == pytest.approx(1e300)
    assert score.is_floor


def test_a_plain_text_longer_than_the_context_is_judged_whole_in_windows(model: Any) -> None:
    ids = [1, *(3 + n % 400 for n in range(1200))]
    (found,) = row_losses(model, [Row(ids, [-100, *ids[1:]])], batch_size=2)
    assert (found.all_tokens, found.response_tokens, found.cut_tokens) == (1200, 1200, 0)
    starts = (0, 511, 1022)
    windows = [Row(ids[start : start + 512], ids[start : start + 512]) for start in starts]
    alone = row_losses(model, windows, batch_size=1)
    assert found.all_nll == pytest.approx(sum(loss.all_nll for loss in alone), rel=1e-5)
    assert found.response_nll == pytest.approx(found.all_nll)
