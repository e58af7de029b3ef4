"""What a reference model thinks of answers: its own are likely, their words at random are not, and it is the plain formula."""

import math
import random
from pathlib import Path
from typing import Any

import pytest

from quantkit.evaluation.generation import generate, stop_token_ids
from quantkit.evaluation.plausibility import answers_under, plausibility_scores
from quantkit.evaluation.rendering import render
from quantkit.evaluation.sources import read_tasks


@pytest.fixture(scope="module")
def asked(tiny_model: Path) -> tuple[Any, Any, list[list[int]], list[str]]:
    """The tiny model, its tokenizer, prompts, and its own answers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = render(read_tasks(limit=16)[0], tokenizer, stop_token_ids(model, tokenizer))
    prompts = [row.prompt_ids for row in rows]
    answers = generate(model, tokenizer, prompts, batch_size=16, max_new_tokens=24)
    return model, tokenizer, prompts, [answer.text for answer in answers]


def test_own_answers_are_likely_and_their_pieces_at_random_are_not(asked: tuple[Any, Any, list[list[int]], list[str]]) -> None:
    model, tokenizer, prompts, texts = asked
    chance = random.Random(0)
    mixed = ["".join(chance.sample(text, len(text))) for text in texts]
    found = {}
    for name, said in {"own": texts, "mixed": mixed}.items():
        told = answers_under(model, tokenizer, prompts, said, batch_size=8, title=name)
        found[name] = plausibility_scores(told, vocabulary=512, seed=0)
    assert found["own"]["unlikely_rate"].value == 0.0
    assert found["own"]["answer_nll"].value < 1.0
    assert found["mixed"]["unlikely_rate"].value > 0.9
    assert [floor.value for floor in found["own"]["answer_nll"].floors] == [math.log(512)]


def test_likelihoods_are_those_of_the_plain_formula(asked: tuple[Any, Any, list[list[int]], list[str]]) -> None:
    import torch

    model, tokenizer, prompts, texts = asked
    ((nll, tokens),) = answers_under(model, tokenizer, prompts[:1], texts[:1], batch_size=1, title="one")
    answer = tokenizer(texts[0], add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompts[0], *answer]])).logits[0].log_softmax(-1)
    start = len(prompts[0]) - 1
    assert tokens == len(answer)
    assert nll == pytest.approx(-sum(float(logits[start + at, token]) for at, token in enumerate(answer)), rel=1e-5)


def test_empty_and_short_answers_are_not_judged_and_the_coverage_says_so(
    asked: tuple[Any, Any, list[list[int]], list[str]],
) -> None:
    model, tokenizer, prompts, texts = asked
    told = answers_under(model, tokenizer, prompts[:3], ["", "7", texts[2]], batch_size=2, title="some")
    assert told[0] == (0.0, 0)
    scores = plausibility_scores(told, vocabulary=512, seed=0)
    assert {score.coverage for score in scores.values()} == {1 / 3}
    assert plausibility_scores(told[:2], vocabulary=512, seed=0) == {}
    assert answers_under(model, tokenizer, [], [], batch_size=2, title="none") == []
