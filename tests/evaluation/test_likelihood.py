"""Log-likelihoods against the plain formula on whole sequences: padded, shared, split, and refused."""

from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import UsageError, VerificationError
from quantkit.evaluation import likelihood
from quantkit.evaluation.likelihood import Request, encode_pair, loglikelihoods


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(tiny_model)


QUESTIONS = ("There are 4 eggs. How many?", "Tom has 12 coins and Ben 7 more than Tom; together?", "2 and 2?")
OPTIONS = (" 4", " seven coins", r" It is \boxed{31}", " 9")


@pytest.fixture(scope="module")
def requests(loaded: tuple[Any, Any]) -> list[Request]:
    """Prompts of three lengths, each followed by one token, and by several."""
    tokenizer = loaded[1]
    pairs = [encode_pair(tokenizer, question, option) for question in QUESTIONS for option in OPTIONS]
    pairs += [(prompt, continuation[:1]) for prompt, continuation in pairs[:5]]
    return [*pairs, ([5], [6, 7, 8]), ([5, 9], [6])]


def direct(model: Any, request: Request) -> tuple[float, bool]:
    import torch

    prompt, continuation = request
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + continuation])).logits[0].log_softmax(-1)
    at = range(len(prompt) - 1, len(prompt) + len(continuation) - 1)
    value = sum(float(logits[position, token]) for position, token in zip(at, continuation, strict=True))
    return value, all(int(logits[p].argmax()) == token for p, token in zip(at, continuation, strict=True))


@pytest.mark.parametrize(("batch_size", "logits_at_once"), [(1, 1024), (4, 1024), (64, 1024), (64, 7)])
def test_values_are_those_of_the_whole_sequence_at_any_batch_size(
    loaded: tuple[Any, Any], requests: list[Request], batch_size: int, logits_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", logits_at_once)
    found = loglikelihoods(loaded[0], requests, batch_size=batch_size)
    for (value, greedy), request in zip(found, requests, strict=True):
        wanted, as_greedy = direct(loaded[0], request)
        assert value == pytest.approx(wanted, abs=2e-4)
        assert greedy == as_greedy


def test_a_model_that_cannot_share_its_cache_gives_the_same_values(
    loaded: tuple[Any, Any], requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = loglikelihoods(loaded[0], requests, batch_size=5)
    monkeypatch.setattr(likelihood, "shares_prefix", lambda _: False)
    for one, other in zip(loglikelihoods(loaded[0], requests, batch_size=5), shared, strict=True):
        assert one[0] == pytest.approx(other[0], abs=2e-4)


def test_a_prompt_shared_by_options_is_computed_once(
    loaded: tuple[Any, Any], requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[int] = []
    forward = likelihood.logits_at_end

    def counted(model: Any, rows: Any, *arguments: Any, **more: Any) -> Any:
        if more.get("cache") is None:
            prompts.extend(map(len, rows))
        return forward(model, rows, *arguments, **more)

    monkeypatch.setattr(likelihood, "logits_at_end", counted)
    loglikelihoods(loaded[0], requests[:12], batch_size=2)
    assert sorted(prompts) == sorted({len(prompt) for prompt, _ in requests[:12]})


def test_what_greedy_decoding_writes_is_greedy(loaded: tuple[Any, Any]) -> None:
    from quantkit.evaluation.generation import generate

    model, tokenizer = loaded
    prompt = tokenizer("There are 4 eggs in a box and 9 eggs in a bag. How many?")["input_ids"]
    (answer,) = generate(model, tokenizer, [prompt], batch_size=1, max_new_tokens=5)
    written = list(answer.tokens)
    other = [*written[:-1], 7 if written[-1] != 7 else 8]
    assert [greedy for _, greedy in loglikelihoods(model, [(prompt, written), (prompt, other)], batch_size=2)] == [True, False]


def test_the_continuation_is_what_both_texts_have_beyond_the_first(loaded: tuple[Any, Any]) -> None:
    tokenizer = loaded[1]
    prompt, continuation = encode_pair(tokenizer, "How many?", " 12")
    assert prompt + continuation == tokenizer("How many? 12")["input_ids"]
    assert encode_pair(tokenizer, "How many? ", "12") == (prompt, continuation)


@pytest.mark.parametrize(
    ("prompt", "continuation", "said"),
    [("  ", "x", "needs a prompt; this one is empty"), ("a", "", "the continuation '' adds no token to its prompt")],
)
def test_pairs_that_cannot_be_judged_are_refused(loaded: tuple[Any, Any], prompt: str, continuation: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        encode_pair(loaded[1], prompt, continuation)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (([], [1]), "request 0: its prompt has no tokens"),
        (([1], []), "request 0: its continuation has no tokens"),
        (([1] * 500, [1] * 20), "prompt of 500 tokens and its continuation of 20 exceed the model's context of 512"),
    ],
)
def test_requests_that_cannot_be_judged_are_refused(loaded: tuple[Any, Any], request_: Request, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        loglikelihoods(loaded[0], [request_], batch_size=2)


def test_a_likelihood_that_is_not_finite_is_an_error_with_its_request(loaded: tuple[Any, Any]) -> None:
    import torch

    model = loaded[0]
    norm = model.model.norm.weight
    kept = norm.data.clone()
    try:
        norm.data.fill_(float("nan"))
        with torch.no_grad(), pytest.raises(VerificationError, match="log-likelihood of request 0 is nan"):
            loglikelihoods(model, [([1, 2], [3, 4])], batch_size=1)
    finally:
        norm.data.copy_(kept)
