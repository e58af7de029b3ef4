"""What does a model answer, greedily, and does it stop by itself?

Prompts are sorted by length and padded on the left, so that batches waste little and every row continues from its own
last token; in float32 the outputs equal those of one prompt at a time. Sampling settings that a checkpoint ships with
(temperature, repetition penalty) are set aside: they would make two quantizations of one model differ by luck.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from quantkit.console import progress
from quantkit.errors import UsageError


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer: its text without special tokens, its token ids with the stop token, and whether it stopped."""

    text: str
    tokens: tuple[int, ...]
    stopped: bool


def stop_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that end an answer: those of the generation config and the tokenizer's end of sequence.

    Raises:
        UsageError: neither names one, so nothing could ever stop.
    """
    config = getattr(model, "generation_config", None)
    stops: set[int] = set()
    for found in (getattr(config, "eos_token_id", None), tokenizer.eos_token_id):
        stops.update(found if isinstance(found, list | tuple) else [] if found is None else [found])
    if not stops:
        raise UsageError(
            "neither generation_config.eos_token_id nor the tokenizer's eos_token is set, so no answer could ever end;"
            " set one of them in the model's folder"
        )
    return tuple(sorted(stops))


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
    title: str = "generate",
) -> list[Generation]:
    """Continue each prompt (token ids) greedily for at most `max_new_tokens`; answers come in the order of the prompts.

    Raises:
        UsageError: a prompt and its answer do not fit into the model's context.
    """
    import torch

    stops = stop_token_ids(model, tokenizer)
    _check_lengths(model, prompts, max_new_tokens)
    pad = stops[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    answers: dict[int, Generation] = {}
    with _greedy(model, stops, pad, max_new_tokens) as config, progress(title, len(prompts), unit="prompts") as bar:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            width = len(prompts[chosen[0]])
            ids = torch.full((len(chosen), width), pad, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, index in enumerate(chosen):
                length = len(prompts[index])
                ids[row, width - length :] = torch.tensor(prompts[index], dtype=torch.long)
                mask[row, width - length :] = 1
            with torch.inference_mode():
                output = model.generate(
                    input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
                )
            for row, index in enumerate(chosen):
                answers[index] = _cut(tokenizer, output[row, width:].tolist(), stops)
            bar.advance(len(chosen))
    return [answers[index] for index in range(len(prompts))]


def _cut(tokenizer: Any, tokens: list[int], stops: Collection[int]) -> Generation:
    """Return the answer up to and including its first stop token; what follows is padding."""
    end = next((at + 1 for at, token in enumerate(tokens) if token in stops), None)
    kept = tokens[:end]
    return Generation(tokenizer.decode(kept, skip_special_tokens=True).strip(), tuple(kept), end is not None)


def _check_lengths(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    context = context_length(model)
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise UsageError(f"prompt {row} has no tokens; a chat template or a question is missing")
        if len(prompt) + max_new_tokens > context:
            raise UsageError(
                f"prompt {row} has {len(prompt)} tokens; with max_new_tokens {max_new_tokens} it exceeds the model's context of"
                f" {context} tokens; lower --max-new-tokens or leave out the row"
            )


def context_length(model: Any) -> int:
    """Return the positions the model knows, in tokens."""
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else 1 << 30


@contextmanager
def _greedy(model: Any, stops: tuple[int, ...], pad: int, max_new_tokens: int) -> Iterator[Any]:
    """Yield a greedy generation config and keep the model's own out of the way (`generate` fills gaps from it)."""
    from transformers import GenerationConfig

    config = GenerationConfig(do_sample=False, eos_token_id=list(stops), pad_token_id=pad, max_new_tokens=max_new_tokens)
    own, training = model.generation_config, model.training
    model.generation_config = config
    model.eval()
    try:
        yield config
    finally:
        model.generation_config = own
        model.train(training)
