"""Batched answers equal those of one prompt at a time, and they end where the model meant them to."""

from pathlib import Path
from typing import Any

import pytest

from quantkit.data.arithmetic import arithmetic_data
from quantkit.errors import UsageError
from quantkit.evaluation.degeneration import degeneration_rates, is_repetitive
from quantkit.evaluation.generation import Generation, generate, stop_token_ids


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(tiny_model)


def prompts(tokenizer: Any, count: int = 13) -> list[list[int]]:
    rows = arithmetic_data(train=1).unseen_templates[:count]
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi! " * (index % 4) + row["question"]}], add_generation_prompt=True, tokenize=False
        )
        for index, row in enumerate(rows)
    ]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_batched_answers_equal_single_ones_in_float32(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    asked = prompts(tokenizer)
    assert len({len(prompt) for prompt in asked}) > 3
    together = generate(model, tokenizer, asked, batch_size=5, max_new_tokens=24)
    alone = [generate(model, tokenizer, [prompt], batch_size=1, max_new_tokens=24)[0] for prompt in asked]
    assert together == alone
    assert any(answer.stopped for answer in together)


def test_an_answer_ends_with_its_stop_token_and_shows_no_special_ones(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    for answer in generate(model, tokenizer, prompts(tokenizer), batch_size=8, max_new_tokens=24):
        assert "<|" not in answer.text
        assert answer.stopped == (answer.tokens[-1] == tokenizer.eos_token_id)
        assert tokenizer.eos_token_id not in answer.tokens[:-1]


def test_an_answer_that_is_cut_off_did_not_stop(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    answers = generate(model, tokenizer, prompts(tokenizer, 3), batch_size=3, max_new_tokens=1)
    assert [(len(answer.tokens), answer.stopped) for answer in answers] == [(1, False)] * 3
    assert degeneration_rates(answers)["stop_rate"].value == 0.0


def test_sampling_settings_of_the_checkpoint_are_set_aside_and_put_back(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    asked = prompts(tokenizer, 4)
    plain = generate(model, tokenizer, asked, batch_size=4, max_new_tokens=16)
    model.generation_config.repetition_penalty = 5.0
    model.train()
    try:
        assert generate(model, tokenizer, asked, batch_size=4, max_new_tokens=16) == plain
        assert model.generation_config.repetition_penalty == 5.0
        assert model.training
    finally:
        model.generation_config.repetition_penalty = None
        model.eval()


def test_the_stop_tokens_are_those_of_generation_config_and_tokenizer(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    own = model.generation_config.eos_token_id
    try:
        model.generation_config.eos_token_id = [7, 0]
        assert stop_token_ids(model, tokenizer) == (0, tokenizer.eos_token_id, 7)
    finally:
        model.generation_config.eos_token_id = own


def test_a_model_without_any_stop_token_is_refused() -> None:
    class Bare:
        eos_token_id = None
        generation_config = None

    with pytest.raises(UsageError, match="so no answer could ever end"):
        stop_token_ids(Bare(), Bare())


def test_a_prompt_that_does_not_fit_the_context_is_refused(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    with pytest.raises(
        UsageError, match="prompt 1 has 500 tokens; with max_new_tokens 24 it exceeds the model's context of 512"
    ):
        generate(model, tokenizer, [[1], [1] * 500], batch_size=2, max_new_tokens=24)


def test_a_prompt_without_tokens_is_refused(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    with pytest.raises(UsageError, match="prompt 0 has no tokens"):
        generate(model, tokenizer, [[]], batch_size=2, max_new_tokens=24)


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        ([5] * 24, True),
        ([1, 2, 3, 4, 5] + [8, 9] * 12, True),
        (list(range(20)) * 3, True),
        ([5] * 23, False),
        (list(range(60)), False),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], False),
        ([token for row in range(20) for token in (1, 2, 3, 4, 5, 6, 7, 8, 100 + row)], False),
        ([token for row in range(20) for token in (*range(1, 20), 100 + row)], True),
    ],
)
def test_loops_are_told_from_text(tokens: list[int], loops: bool) -> None:
    assert is_repetitive(tokens) is loops


def test_rates_are_shares_of_all_answers() -> None:
    answers = [
        Generation("", (2,), True),
        Generation("aaa", (5,) * 30, False),
        Generation("ok", (4, 2), True),
        Generation("", (2,), True),
    ]
    rates = degeneration_rates(answers)
    assert {name: rate.value for name, rate in rates.items()} == {"empty_rate": 0.5, "repetition_rate": 0.25, "stop_rate": 0.75}
