"""What does a model answer, greedily, and does it stop by itself?

Decoders are continued by `quantkit.evaluation.decoding`; what that cannot do (state-space layers, encoders, attention windows
shorter than the text) goes through `model.generate`, sorted by length and padded on the left. Either way float32 answers
equal those of one prompt at a time; in 16 bits, sums are rounded differently in a batch and a close decision can fall the
other way, as it can between two batch sizes of any library. Sampling settings that a checkpoint ships with (temperature,
repetition penalty) are set aside: they would make two quantizations of one model differ by luck.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from quantkit.console import progress, warn
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
    known: Mapping[int, Generation] | None = None,
    on_answer: Callable[[int, Generation], None] | None = None,
) -> list[Generation]:
    """Continue each prompt (token ids) greedily for at most `max_new_tokens`; answers come in the order of the prompts.

    `known` holds answers of an earlier run by the prompt's number; they are not generated again. `on_answer` hears of each new
    one as it ends. Where a GPU's memory does not hold `batch_size` prompts, half as many are tried.

    Raises:
        UsageError: a prompt and its answer do not fit into the model's context, or a single one into the memory.
    """
    stops = stop_token_ids(model, tokenizer)
    _check_lengths(model, prompts, max_new_tokens)
    pad = stops[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    answers = dict(known or {})
    missing = sum(index not in answers for index in range(len(prompts)))
    with _greedy(model, stops, pad, max_new_tokens) as config, progress(title, missing, unit="prompts", even=False) as bar:

        def ended(index: int, tokens: list[int]) -> None:
            answers[index] = answer = _cut(tokenizer, tokens, stops)
            if on_answer is not None:
                on_answer(index, answer)
            bar.advance()

        while left := {index: prompt for index, prompt in enumerate(prompts) if index not in answers}:
            if _continued(model, left, batch_size, config, ended):
                break
            if batch_size == 1:
                raise _too_little_memory(model, max(map(len, left.values())), max_new_tokens)
            batch_size = max(1, batch_size // 2)
            warn(f"{model.device} has not enough memory for so many prompts at a time; going on with {batch_size}")
    return [answers[index] for index in range(len(prompts))]


Ended = Callable[[int, list[int]], None]


def timed_answer(model: Any, tokenizer: Any, prompt: Sequence[int], *, max_new_tokens: int) -> tuple[Generation, float, float]:
    """Continue one prompt alone; return the answer, the seconds to its first token, and those to its last.

    On a GPU a token counts when it has been read, so nothing is still under way then.

    Raises:
        UsageError: as `generate` does.
    """
    stops = stop_token_ids(model, tokenizer)
    _check_lengths(model, [prompt], max_new_tokens)
    pad = stops[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    passes: list[float] = []
    found: list[list[int]] = []
    with _greedy(model, stops, pad, max_new_tokens) as config:
        started = time.perf_counter()
        fits = _continued(
            model,
            {0: prompt},
            1,
            config,
            lambda _, tokens: found.append(tokens),
            passed=lambda: passes.append(time.perf_counter() - started),
        )
    if not fits:
        raise _too_little_memory(model, len(prompt), max_new_tokens)
    return _cut(tokenizer, found[0], stops), passes[0], passes[-1]


def _too_little_memory(model: Any, tokens: int, max_new_tokens: int) -> UsageError:
    return UsageError(
        f"a prompt of {tokens} tokens and its answer of up to {max_new_tokens} do not fit into the memory of {model.device}"
        " even alone; lower --max-new-tokens, or leave out the row"
    )


def _continued(
    model: Any,
    prompts: Mapping[int, Sequence[int]],
    batch_size: int,
    config: Any,
    ended: Ended,
    *,
    passed: Callable[[], None] | None = None,
) -> bool:
    """Continue the prompts of these numbers; return whether the memory was enough. `passed` hears of every pass's tokens."""
    import torch

    from quantkit.evaluation.decoding import SlotDecoder, can_use_slots

    numbers = list(prompts)
    try:
        if can_use_slots(model, max(map(len, prompts.values())) + config.max_new_tokens):
            SlotDecoder(
                model,
                list(prompts.values()),
                slots=batch_size,
                max_new_tokens=config.max_new_tokens,
                stops=config.eos_token_id,
                pad=config.pad_token_id,
                ended=lambda at, tokens: ended(numbers[at], tokens),
                passed=passed,
            ).run()
        else:
            _by_transformers(model, prompts, batch_size, config, ended, streamer=_Streamer(passed) if passed else None)
    except torch.OutOfMemoryError:
        pass
    else:
        return True
    torch.cuda.empty_cache()
    return False


class _Streamer:
    """Passes on when `model.generate`, given one prompt, has another token."""

    def __init__(self, passed: Callable[[], None]) -> None:
        self._passed, self._begun = passed, False

    def put(self, _tokens: Any) -> None:
        """Hear of tokens; the first are the prompt's."""
        if self._begun:
            self._passed()
        self._begun = True

    def end(self) -> None:
        """Hear of the end."""


def _by_transformers(
    model: Any,
    prompts: Mapping[int, Sequence[int]],
    batch_size: int,
    config: Any,
    ended: Ended,
    *,
    streamer: _Streamer | None = None,
) -> None:
    """Continue prompts by `model.generate`, the longest first."""
    import torch

    order = sorted(prompts, key=lambda index: -len(prompts[index]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = len(prompts[chosen[0]])
        ids = torch.full((len(chosen), width), config.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(chosen):
            length = len(prompts[index])
            ids[row, width - length :] = torch.tensor(prompts[index], dtype=torch.long)
            mask[row, width - length :] = 1
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=config,
                streamer=streamer,
            )
        for row, index in enumerate(chosen):
            ended(index, output[row, width:].tolist())


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
