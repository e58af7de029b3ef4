"""Batched answers equal those of one prompt at a time, and they end where the model meant them to."""

from pathlib import Path
from typing import Any

import pytest

from quantkit.data.arithmetic import arithmetic_data
from quantkit.errors import UsageError
from quantkit.evaluation import decoding
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


def test_batched_answers_in_16_bits_equal_single_ones_but_for_close_decisions(tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    assert model.dtype == torch.bfloat16
    asked = prompts(tokenizer, 12)
    together = generate(model, tokenizer, asked, batch_size=5, max_new_tokens=24)
    alone = generate(model, tokenizer, asked, batch_size=1, max_new_tokens=24)
    for prompt, one, other in zip(asked, together, alone, strict=True):
        at = next((at for at, (a, b) in enumerate(zip(one.tokens, other.tokens, strict=False)) if a != b), None)
        if at is not None:  # the two tokens were as good as equally likely
            with torch.inference_mode():
                logits = model(torch.tensor([[*prompt, *one.tokens[:at]]])).logits[0, -1].float()
            assert abs(float(logits[one.tokens[at]] - logits[other.tokens[at]])) <= 2 * float(logits.abs().max()) / 256
    assert sum(one == other for one, other in zip(together, alone, strict=True)) >= 8


def small(name: str, **changes: Any) -> Any:
    """Return a random model of a family; weights are large enough for answers to vary."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 512,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    config = AutoConfig.for_model(name, **(sizes | changes))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    return model.eval()


GROUPED = {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64}


@pytest.mark.parametrize(
    ("name", "changes", "in_slots"),
    [
        ("gpt2", {}, True),
        ("gpt_neox", {"intermediate_size": 64}, True),
        ("qwen3", GROUPED, True),
        ("gemma2", {**GROUPED, "sliding_window": 4096}, True),
        ("mistral", {**GROUPED, "sliding_window": 24}, False),
        ("bloom", {}, False),
        ("mamba", {"state_size": 4}, False),
    ],
)
def test_every_family_of_decoders_answers_as_one_prompt_at_a_time_by_transformers(
    loaded: tuple[Any, Any], name: str, changes: dict[str, Any], in_slots: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, tokenizer = loaded
    model, asked = small(name, **changes), prompts(tokenizer, 7)
    assert decoding.can_use_slots(model, max(map(len, asked)) + 12) is in_slots
    together = generate(model, tokenizer, asked, batch_size=3, max_new_tokens=12)
    monkeypatch.setattr(decoding, "can_use_slots", lambda *_: False)
    assert together == generate(model, tokenizer, asked, batch_size=1, max_new_tokens=12)
    assert len({answer.tokens for answer in together}) > 3


def test_a_slot_is_free_for_the_next_prompt_when_its_answer_ends(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    asked, steps = prompts(tokenizer), []
    hook = model.register_forward_pre_hook(lambda _, __, given: steps.append(tuple(given["input_ids"].shape)), with_kwargs=True)
    try:
        answers = generate(model, tokenizer, asked, batch_size=4, max_new_tokens=24)
    finally:
        hook.remove()
    decoded = [rows for rows, width in steps if width == 1]
    assert max(decoded) == 4
    assert decoded[-1] < 4
    assert sum(len(answer.tokens) - 1 for answer in answers) > 0.6 * sum(decoded)


def test_what_all_prompts_begin_with_is_processed_once(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    shared = [1, *range(20, 60)]
    asked, widths = [[*shared, 70 + at, 80] for at in range(6)], []
    hook = model.register_forward_pre_hook(lambda _, __, given: widths.append(given["input_ids"].numel()), with_kwargs=True)
    try:
        together = generate(model, tokenizer, asked, batch_size=6, max_new_tokens=6)
    finally:
        hook.remove()
    assert widths[:2] == [len(shared), 12]
    assert together == [generate(model, tokenizer, [prompt], batch_size=1, max_new_tokens=6)[0] for prompt in asked]


def test_there_are_no_more_slots_than_the_free_memory_holds(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded
    asked, rows = prompts(tokenizer, 9), []
    plain = generate(model, tokenizer, asked, batch_size=9, max_new_tokens=12)
    row = (max(map(len, asked)) + 12) * 4 * 2 * 2 * 32 * 4  # columns, layers, keys and values, heads, their width, float32
    monkeypatch.setattr(decoding, "free_bytes", lambda _: 2 * 3.5 * row)
    monkeypatch.setattr(decoding, "PROMPT_TOKENS_AT_ONCE", 64)
    hook = model.register_forward_pre_hook(lambda _, __, given: rows.append(given["input_ids"].shape[0]), with_kwargs=True)
    try:
        assert generate(model, tokenizer, asked, batch_size=9, max_new_tokens=12) == plain
    finally:
        hook.remove()
    assert max(rows) == 3


@pytest.mark.parametrize("in_slots", [True, False])
def test_a_batch_that_does_not_fit_the_memory_is_halved_and_finished_answers_stay(
    loaded: tuple[Any, Any], in_slots: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    model, tokenizer = loaded
    asked, heard = prompts(tokenizer, 9), []
    plain = generate(model, tokenizer, asked, batch_size=4, max_new_tokens=12)
    if not in_slots:
        monkeypatch.setattr(decoding, "can_use_slots", lambda *_: False)

    def full(_: Any, __: Any, given: dict[str, Any]) -> None:
        if given["input_ids"].shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = model.register_forward_pre_hook(full, with_kwargs=True)
    try:
        answers = generate(
            model, tokenizer, asked, batch_size=8, max_new_tokens=12, on_answer=lambda index, _: heard.append(index)
        )
    finally:
        hook.remove()
    assert answers == plain
    assert sorted(heard) == list(range(9))
    said = capsys.readouterr().err
    assert "cpu has not enough memory for so many prompts at a time; going on with 4" in said
    assert "going on with 2" in said


def test_a_prompt_that_does_not_fit_the_memory_alone_is_named(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(decoding.SlotDecoder, "run", full)
    with pytest.raises(UsageError, match="a prompt of 5 tokens and its answer of up to 6 do not fit into the memory of cpu"):
        generate(*loaded, [[1] * 5], batch_size=1, max_new_tokens=6)


def test_known_answers_are_not_generated_again(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    asked, heard = prompts(tokenizer, 6), []
    plain = generate(model, tokenizer, asked, batch_size=3, max_new_tokens=12)
    known = {1: Generation("kept", (5,), False), 4: Generation("this too", (6,), False)}
    answers = generate(
        model, tokenizer, asked, batch_size=3, max_new_tokens=12, known=known, on_answer=lambda *new: heard.append(new)
    )
    assert [answers[1], answers[4]] == [known[1], known[4]]
    assert sorted(heard) == [(index, plain[index]) for index in (0, 2, 3, 5)]


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
