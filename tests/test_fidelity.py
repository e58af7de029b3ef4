"""Two models that should be the same are compared by what they predict."""

from pathlib import Path

import pytest
import torch

from quantkit.errors import VerificationError
from quantkit.fidelity import compare_logits, probe_logits


def test_equal_logits_are_faithful() -> None:
    logits = torch.randn(5, 7)
    same = compare_logits(logits, logits.clone())
    assert (same.max_abs_logit_difference, same.mean_kl, same.top1_agreement) == (0.0, 0.0, 1.0)


def test_divergence_is_the_one_computed_by_torch() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(50, 11), torch.randn(50, 11)
    expected = torch.nn.functional.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="batchmean")
    assert compare_logits(a, b).mean_kl == pytest.approx(float(expected), rel=1e-5)


def test_a_logit_that_is_not_finite_is_refused() -> None:
    with pytest.raises(VerificationError, match="compared model gives logits that are not finite"):
        compare_logits(torch.zeros(1, 2), torch.tensor([[0.0, float("nan")]]))


def test_different_vocabularies_are_refused() -> None:
    with pytest.raises(VerificationError, match="cannot be compared"):
        compare_logits(torch.zeros(1, 2), torch.zeros(1, 3))


def test_the_probe_takes_so_many_tokens_and_leaves_the_mode_alone(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).train()
    rows = [[1, 5, 6, 7], [1, 8, 9, 10]]
    logits = probe_logits(model, rows, tokens=6)
    assert logits.shape == (6, 512)
    assert model.training
    torch.testing.assert_close(logits[4:], probe_logits(model, [rows[1]], tokens=2))


def test_no_rows_are_refused(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    with pytest.raises(VerificationError, match="no rows"):
        probe_logits(AutoModelForCausalLM.from_pretrained(tiny_model), [])
