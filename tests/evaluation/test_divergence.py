"""Divergence against the plain formula on whole logits: in windows, padded, cut, and refused."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import UsageError, VerificationError
from quantkit.evaluation import divergence
from quantkit.evaluation.divergence import RowDivergence, divergence_scores, require_same_vocabulary, row_divergences
from tests.tiny import tiny_config


@dataclass
class Row:
    input_ids: list[int]
    labels: list[int]


@pytest.fixture(scope="module")
def models(tiny_model: Path) -> tuple[Any, Any]:
    """The tiny model, and the same with noise on its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    model, other = (AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32) for _ in range(2))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.5 * parameter.std() * torch.randn_like(parameter))
    return model, other


ROWS = [
    Row([5, 17, 40, 41, 99, 7, 8], [-100, -100, -100, -100, 99, 7, 8]),
    Row([1, 4, 9, 30], [-100, 4, 9, 30]),
    Row([1] + [60 + n % 9 for n in range(30)], [-100] * 21 + [60 + n % 9 for n in range(20, 30)]),
]


def direct(reference: Any, model: Any, row: Row) -> tuple[list[float], list[bool]]:
    import torch

    with torch.no_grad():
        p, q = (item(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(-1) for item in (reference, model))
    at = [position - 1 for position in range(1, len(row.labels)) if row.labels[position] != -100]
    return [float((p[n].exp() * (p[n] - q[n])).sum()) for n in at], [bool(p[n].argmax() == q[n].argmax()) for n in at]


@pytest.mark.parametrize(("batch_size", "positions"), [(1, 256), (3, 256), (3, 7), (2, 1)])
def test_divergence_equals_the_plain_formula(
    models: tuple[Any, Any], batch_size: int, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence, "POSITIONS_AT_ONCE", positions)
    model, reference = models
    found = row_divergences(model, reference, ROWS, batch_size=batch_size)
    for row, said in zip(ROWS, found, strict=True):
        kl, agrees = direct(reference, model, row)
        assert said.kl == pytest.approx(kl, abs=1e-5)
        assert said.agrees == agrees
        assert said.mean_kl == pytest.approx(math.fsum(kl) / len(kl), abs=1e-5)
    scores = divergence_scores(found, vocabulary=512, seed=0)
    whole = [value for row in ROWS for value in direct(reference, model, row)[0]]
    assert scores["kl_mean"].value == pytest.approx(sum(whole) / len(whole), abs=1e-5)
    assert scores["kl_p99"].value == pytest.approx(max(whole), abs=1e-5)
    assert 0 < scores["top1_agreement"].value < 1
    assert scores["kl_mean"].value < scores["kl_mean"].floors[0].value
    assert [floor.name for floor in scores["top1_agreement"].floors] == ["uniform", "majority"]


def test_a_model_does_not_diverge_from_itself(models: tuple[Any, Any]) -> None:
    scores = divergence_scores(row_divergences(models[0], models[0], ROWS, batch_size=2), vocabulary=512, seed=0)
    assert [scores[name].value for name in ("kl_mean", "kl_p99", "top1_agreement")] == [0.0, 0.0, 1.0]
    assert scores["top1_agreement"].low == pytest.approx(0.438, abs=1e-3)  # three rows are few


def test_a_model_that_knows_nothing_is_at_the_floor(models: tuple[Any, Any]) -> None:
    import torch
    from transformers import LlamaForCausalLM

    blank = LlamaForCausalLM(tiny_config())
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.zero_()
    score = divergence_scores(row_divergences(blank, models[0], ROWS, batch_size=3), vocabulary=512, seed=0)["kl_mean"]
    assert score.value == pytest.approx(score.floors[0].value, rel=1e-5)
    assert score.is_floor


def test_tokens_beyond_the_context_lower_the_coverage(models: tuple[Any, Any]) -> None:
    row = Row([3] * 700, [-100] * 400 + [3] * 300)
    (found,) = row_divergences(*models, [row], batch_size=1)
    assert (len(found.kl), found.cut_tokens) == (112, 188)
    assert divergence_scores([found], vocabulary=512, seed=0)["kl_mean"].coverage == pytest.approx(112 / 300)


def test_rows_without_a_response_are_said_and_no_response_at_all_is_an_error(models: tuple[Any, Any]) -> None:
    found = row_divergences(*models, [ROWS[0], Row([1, 2], [-100, -100])], batch_size=2)
    assert found[1].mean_kl is None
    assert divergence_scores(found, vocabulary=512, seed=0)["kl_mean"].coverage == 0.5
    with pytest.raises(UsageError, match="no response tokens to compare two models on"):
        divergence_scores(found[1:], vocabulary=512, seed=0)


def test_models_of_two_vocabularies_are_refused(models: tuple[Any, Any]) -> None:
    from transformers import LlamaForCausalLM

    with pytest.raises(UsageError, match="vocabulary has 100 tokens, the model's 512"):
        row_divergences(models[0], LlamaForCausalLM(tiny_config(vocab_size=100)), ROWS, batch_size=1)


def test_tokenizers_that_number_a_token_differently_are_refused() -> None:
    class Tokenizer:
        def __init__(self, *tokens: str) -> None:
            self.get_vocab = lambda: {token: number for number, token in enumerate(tokens)}

    require_same_vocabulary(Tokenizer("a", "b"), Tokenizer("a", "b"), "base")
    with pytest.raises(
        UsageError, match="base: its tokenizer has 2 tokens, the model's 2, and 'a' is number 1 there and 0 here"
    ):
        require_same_vocabulary(Tokenizer("a", "b"), Tokenizer("b", "a"), "base")


def test_a_divergence_that_is_not_finite_is_an_error_with_the_row(models: tuple[Any, Any]) -> None:
    norm = models[1].model.norm.weight
    kept = norm.data.clone()
    try:
        norm.data.fill_(float("nan"))
        with pytest.raises(VerificationError, match="the divergence of row 0 is not finite"):
            row_divergences(*models, ROWS, batch_size=1)
    finally:
        norm.data.copy_(kept)


def test_the_tail_is_over_tokens_not_over_rows() -> None:
    rows = [
        RowDivergence([0.1] * 150, [5.0] * 150, [True] * 150, [1] * 150),
        RowDivergence([9.0] * 2, [5.0] * 2, [False] * 2, [1] * 2),
    ]
    scores = divergence_scores(rows, vocabulary=512, seed=0)
    assert scores["kl_p99"].value == 9.0
    assert scores["kl_mean"].value == pytest.approx((15 + 18) / 152)


def test_a_plain_text_longer_than_the_context_is_compared_whole(models: tuple[Any, Any]) -> None:
    ids = [1, *(3 + n % 400 for n in range(700))]
    (found,) = row_divergences(*models, [Row(ids, [-100, *ids[1:]])], batch_size=2)
    assert (len(found.kl), found.cut_tokens) == (700, 0)
    first, second = row_divergences(*models, [Row(ids[:512], [-100, *ids[1:512]]), Row(ids[511:], ids[511:])], batch_size=1)
    assert found.kl == pytest.approx(first.kl + second.kl, abs=1e-5)
