"""Does the gate measure what quantization costs, and say in words what is beyond its limits?"""

import copy

import pytest
import torch

from quantkit import gate
from quantkit.errors import VerificationError
from quantkit.gate import (
    DEFAULT_LIMITS,
    Behaviour,
    GateLimits,
    GateMeasures,
    GateText,
    answered,
    compare,
    judge,
    limits_for,
    observe,
    untold,
)

ROWS = tuple(tuple(range(3 + at, 43 + at)) for at in range(4))
TEXT = GateText(ROWS, (tuple(range(3, 13)),), "counting")
GOOD = GateMeasures(
    perplexity_source=6.0,
    perplexity=6.3,
    perplexity_ratio=1.05,
    mean_kl=0.02,
    top1_agreement=0.95,
    broken_source=0.0,
    broken=0.0,
    answers=16,
    broken_rise_low=0.0,
)


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    from tests.tiny import tiny_model_folder

    return AutoModelForCausalLM.from_pretrained(tiny_model_folder(), dtype="float32").eval()


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    from tests.tiny import tiny_model_folder

    return AutoTokenizer.from_pretrained(tiny_model_folder())


def test_a_model_is_no_distance_from_itself(model, tokenizer):
    seen = observe(model, tokenizer, TEXT)
    measures = compare(seen, seen, TEXT)
    assert (measures.perplexity_ratio, measures.mean_kl, measures.top1_agreement) == (1.0, 0.0, 1.0)
    assert judge(measures, DEFAULT_LIMITS[8]) == []


def test_the_numbers_are_those_of_the_logits(model, tokenizer):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.add_(0.02 * torch.randn(128, 256, generator=torch.manual_seed(0)))
        ids = torch.tensor(ROWS)
        p, q = (each(ids[:, :-1]).logits.log_softmax(-1) for each in (model, other))
    nll = [float(-said.gather(-1, ids[:, 1:, None]).mean()) for said in (p, q)]
    measures = compare(observe(model, tokenizer, TEXT), observe(other, tokenizer, TEXT), TEXT)
    assert measures.perplexity == pytest.approx(torch.tensor(nll[1]).exp().item(), rel=1e-4)
    assert measures.perplexity_ratio == pytest.approx(torch.tensor(nll[1] - nll[0]).exp().item(), rel=1e-4)
    assert measures.mean_kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=0.05)
    assert measures.top1_agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).float().mean()))


def test_a_broken_model_is_an_error(model, tokenizer):
    broken = copy.deepcopy(model)
    broken.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(VerificationError, match="the loss on held-out text is not finite"):
        observe(broken, tokenizer, TEXT)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"perplexity_ratio": 1.6}, "perplexity is 1.600 times the source's, above 1.5"),
        ({"perplexity_ratio": float("nan")}, "perplexity is nan times the source's, above 1.5"),
        ({"mean_kl": 0.7}, "mean KL is 0.7 nats, above 0.5"),
        ({"top1_agreement": 0.5}, "top-1 agreement is 50.0%, below 70%"),
        ({"broken": 0.5, "broken_rise_low": 0.2}, "50% of 16 greedy answers are empty or loop, 0% of the source's"),
    ],
)
def test_what_is_beyond_a_limit_is_said(changes, said):
    from dataclasses import replace

    assert judge(GOOD, DEFAULT_LIMITS[4]) == []
    assert judge(replace(GOOD, **changes), DEFAULT_LIMITS[4]) == [said]


def test_limits_are_the_methods_own_else_those_of_its_bits():
    own = {4: GateLimits(max_ppl_ratio=2.0, max_kl=1.0, min_top1=0.5)}
    assert limits_for(4, own) is own[4]
    assert limits_for(3, own) is DEFAULT_LIMITS[3]
    assert limits_for(6) is DEFAULT_LIMITS[4]
    assert limits_for(4).with_changes(max_kl=9.0, min_top1=None).max_kl == 9.0


def seen_broken(count: int, of: int) -> Behaviour:
    same = torch.zeros(sum(len(row) - 1 for row in ROWS), dtype=torch.long)
    return Behaviour(1.0, same, torch.zeros(4, 4), tuple(at < count for at in range(of)))


@pytest.mark.parametrize(
    ("broken", "source", "answers", "marked"),
    [(3, 0, 4, False), (4, 0, 4, True), (6, 0, 16, False), (7, 0, 16, True), (16, 12, 16, False)],
)
def test_a_share_of_few_answers_marks_only_where_its_interval_says_so_too(broken, source, answers, marked):
    measures = compare(seen_broken(source, answers), seen_broken(broken, answers), TEXT)
    assert measures.answers == answers
    assert bool(judge(measures, DEFAULT_LIMITS[4])) is marked


def test_answers_that_could_mark_no_model_are_said_to_be_left_out():
    for answers, source, said in [
        (16, 0, None),
        (4, 0, None),
        (2, 0, "with 2 of them, 0 of the source's empty or looping, even a model that breaks all could be luck"),
        (16, 12, "with 16 of them, 12 of the source's empty or looping"),
        (0, 0, "no answer was asked for: no token ends one, or no prompt leaves room for one"),
    ]:
        measures = compare(seen_broken(source, answers), seen_broken(source, answers), TEXT)
        found = untold(measures, DEFAULT_LIMITS[4])
        assert found is None if said is None else found.startswith(said)


def test_answers_are_asked_only_when_wanted_and_may_be_asked_later(model, tokenizer, monkeypatch):
    seen = observe(model, tokenizer, TEXT, answers=False)
    assert seen.broken is None
    assert compare(seen, seen, TEXT).broken is None
    later = answered(seen, model, tokenizer, TEXT)
    assert later.broken == observe(model, tokenizer, TEXT).broken
    assert len(later.broken) == 1
    monkeypatch.setattr(gate, "ANSWER_TOKENS", 1 << 20)  # no prompt leaves room for so many
    assert answered(seen, model, tokenizer, TEXT).broken == ()
