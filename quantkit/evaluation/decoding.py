"""How are many prompts continued at once without waiting for the longest answer?

A batch is a number of slots, each with a place of its own in one key/value buffer. A prompt is processed with others of its
length, copied into a free slot and decoded there; when its answer ends, the slot takes the next prompt. What all prompts
begin with (a system prompt, worked examples) is processed once. Nothing is padded while decoding, the buffer is written in
place, and when no prompt waits the batch shrinks.

`model.generate` pads every prompt to the longest of its batch and computes finished rows until the last one ends. Measured
beside it on 64 prompts of 50 to 178 tokens, the first 24 alike (a bfloat16 model of SmolLM2-135M's shape, one core): the
prompts took 5.0 s here and 12.2 s there; a token of 64 rows 178 ms here and 193 ms there, of 16 rows 70 and 67 ms. Writing the
buffer in place instead of copying it gains little on a processor; positions that are not computed and large batches do. Copying
a layer's keys and values together before attention reads them was tried and made 64 rows slower (215 ms).
"""

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from quantkit.evaluation.forward import logits_at_end, pad_left
from quantkit.layers import bare_model
from quantkit.memory import free_bytes

PROMPT_TOKENS_AT_ONCE = 2048
"""Prompt tokens, padding included, in one pass: enough to keep a processor busy, little enough to need no memory."""
SHARED_AT_LEAST = 8
"""Tokens that prompts must have in common before it pays to process them apart."""
REFILL_AT = 0.25
"""Share of free slots at which waiting prompts are processed: several together take less time each than one alone."""
CACHE_SHARE = 0.5
"""Share of the free memory that keys and values may take."""
Ended = Callable[[int, list[int]], None]


def can_use_slots(model: Any, columns: int) -> bool:
    """Whether slots give what `model.generate` would: a decoder whose layers all keep keys and values of every position.

    Positions must be given from outside, and no attention window may be shorter than `columns`. State-space layers, encoders
    and distance biases that are counted in columns need `model.generate`.
    """
    inner = bare_model(model)
    config = inner.config.get_text_config(decoder=True)
    if getattr(inner.config, "is_encoder_decoder", False) or getattr(config, "_attn_implementation", "") not in (
        "sdpa",
        "eager",
    ):
        return False
    if "position_ids" not in inspect.signature(inner.forward).parameters:
        return False
    layers = DynamicCache(config=config).layers
    return bool(layers) and all(
        type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window > columns)
        for layer in layers
    )


class Places:
    """Where each slot's next token is written, for all layers of a cache."""

    def __init__(self, slots: int, columns: int, device: torch.device) -> None:
        self.columns = columns
        self.rows = torch.arange(slots, device=device)
        self.cursor = torch.zeros(slots, dtype=torch.long, device=device)
        self.width = 1
        """Columns that any slot uses, the one being written included."""


class SlotLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, `[slots, heads, columns, width of a head]`, one token written per slot and step."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take the buffers; zeros, because what is masked is still multiplied (by 0)."""
        size = (len(self.places.rows), key_states.shape[1], self.places.columns)
        self.keys = key_states.new_zeros((*size, key_states.shape[-1]))
        self.values = value_states.new_zeros((*size, value_states.shape[-1]))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_more: Any) -> tuple[Tensor, Tensor]:
        """Write one token per slot and return what attention looks at."""
        places = self.places
        self.keys[places.rows, :, places.cursor] = key_states[:, :, 0]
        self.values[places.rows, :, places.cursor] = value_states[:, :, 0]
        return self.keys[:, :, : places.width], self.values[:, :, : places.width]

    def fill(self, slot: int, key_states: Tensor, value_states: Tensor, padding: slice) -> None:
        """Copy a processed prompt, `[heads, tokens, width]`, without the columns of its padding."""
        if not self.is_initialized:
            self.lazy_initialization(key_states[None], value_states[None])
        for kept, new in ((self.keys[slot], key_states), (self.values[slot], value_states)):
            kept[:, : padding.start] = new[:, : padding.start]
            kept[:, padding.start : new.shape[1] - padding.stop + padding.start] = new[:, padding.stop :]

    def get_seq_length(self) -> int:
        """Return the columns before the one being written."""
        return self.places.width - 1

    def get_mask_sizes(self, _query_length: int) -> tuple[int, int]:
        """Return the columns attention looks at, and that the first is column 0."""
        return self.places.width, 0


class SlotDecoder:
    """Continues prompts greedily in `slots` slots; calls `ended(prompt's number, tokens)` for each answer as it ends."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        *,
        slots: int,
        max_new_tokens: int,
        stops: Collection[int],
        pad: int,
        ended: Ended,
        passed: Callable[[], None] | None = None,
    ) -> None:
        """`passed` hears of each pass through the model when its tokens are there."""
        self._passed = passed or (lambda: None)
        self._model, self._stops, self._pad, self._ended = model, stops, pad, ended
        self._prompts = [list(prompt) for prompt in prompts]
        self._longest = max_new_tokens
        slots = min(slots, len(prompts))
        self._device = model.device
        self._config = bare_model(model).config.get_text_config(decoder=True)
        takes = inspect.signature(bare_model(model).forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        columns = max(map(len, prompts)) + max_new_tokens
        self._places = Places(slots, columns, self._device)
        self._layers = [SlotLayer(self._places) for _ in DynamicCache(config=self._config).layers]
        self._cache = Cache(layers=self._layers)
        self._seen = torch.zeros((slots, columns), dtype=torch.long, device=self._device)
        self._seen[:, 0] = 1  # an empty slot looks at itself: attention over nothing is not a number
        self._next = torch.full((slots, 1), pad, dtype=torch.long, device=self._device)
        self._cursors = [0] * slots
        self._owner: list[int | None] = [None] * slots
        self._said: dict[int, list[int]] = {}

    def run(self) -> None:
        """Continue all prompts, the longest first."""
        waiting = sorted(range(len(self._prompts)), key=lambda index: len(self._prompts[index]))
        start = self._shared()
        with torch.inference_mode():
            while waiting or self._said:
                free = [slot for slot, owner in enumerate(self._owner) if owner is None]
                if len(free) >= REFILL_AT * len(self._owner) or not self._said:
                    while waiting and free:
                        free = self._process(waiting, free, start)
                if self._said:
                    if not waiting and 2 * len(self._said) <= len(self._owner):
                        self._keep([slot for slot, owner in enumerate(self._owner) if owner is not None])
                    self._step()

    def _shared(self) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values, `[1, heads, tokens, width]`, of what all prompts begin with; empty where it does not pay."""
        first, last = min(self._prompts), max(self._prompts)
        most = min(map(len, self._prompts)) - 1
        common = next((at for at in range(most) if first[at] != last[at]), most)
        if len(self._prompts) < 2 or common < SHARED_AT_LEAST:
            return []
        with torch.inference_mode():
            end = logits_at_end(self._model, [first[:common]], 1, cached=True)
        return [(layer.keys, layer.values) for layer in end.cache.layers]

    def _process(self, waiting: list[int], free: list[int], start: list[tuple[Tensor, Tensor]]) -> list[int]:
        """Process the longest waiting prompts, as many as fit, into free slots; return the slots that stay free."""
        common = start[0][0].shape[2] if start else 0
        width = len(self._prompts[waiting[-1]]) - common
        chosen = [waiting.pop() for _ in range(min(len(free), len(waiting), max(1, PROMPT_TOKENS_AT_ONCE // width)))]
        ids, mask = pad_left([self._prompts[index][common:] for index in chosen])
        cache = DynamicCache(config=self._config)
        for at, (keys, values) in enumerate(start):
            cache.update(keys.expand(len(chosen), -1, -1, -1), values.expand(len(chosen), -1, -1, -1), at)
        before = mask.new_ones((len(chosen), common), device=self._device)
        end = logits_at_end(self._model, ids, 1, cached=True, mask=mask, before=before, cache=cache)
        first, free = _likeliest(end.logits)[:, 0].tolist(), list(free)
        self._passed()
        if not self._layers[0].is_initialized:
            free = self._keep(range(max(len(chosen), min(len(free), self._fitting(cache)))))
        for row, (index, token) in enumerate(zip(chosen, first, strict=True)):
            if token in self._stops or self._longest == 1:
                self._ended(index, [token])
                continue
            slot, length = free.pop(0), len(self._prompts[index])
            padding = slice(common, common + width + common - length)
            for layer, done in zip(self._layers, cache.layers, strict=True):
                layer.fill(slot, done.keys[row], done.values[row], padding)
            self._owner[slot], self._said[slot] = index, [token]
            self._place(slot, length, token)
        return free

    def _place(self, slot: int, length: int, token: int) -> None:
        """Say that a slot holds `length` tokens and is to be fed this one."""
        self._cursors[slot], self._places.cursor[slot] = length, length
        self._seen[slot] = 0
        self._seen[slot, : length + 1] = 1
        self._next[slot, 0] = token

    def _step(self) -> None:
        """Decode one token in every slot."""
        places = self._places
        places.width = max(self._cursors) + 1
        output = self._model(
            input_ids=self._next,
            attention_mask=self._seen[:, : places.width],
            position_ids=places.cursor[:, None],
            past_key_values=self._cache,
            use_cache=True,
            **self._last_only,
        )
        self._next = _likeliest(output.logits)
        tokens, ended = self._next[:, 0].tolist(), []
        self._passed()
        for slot, token in enumerate(tokens):
            if (said := self._said.get(slot)) is None:
                continue
            said.append(token)
            self._cursors[slot] += 1
            if token in self._stops or len(said) == self._longest:
                ended.append(slot)
        places.cursor += torch.tensor([slot in self._said for slot in range(len(self._owner))], device=self._device)
        self._seen[places.rows, places.cursor] = 1
        for slot in ended:
            index, said = self._owner[slot], self._said.pop(slot)
            self._owner[slot] = None
            self._place(slot, 0, self._pad)
            if index is not None:
                self._ended(index, said)

    def _fitting(self, processed: Any) -> int:
        """Return how many slots the free memory holds, told from what keys and values of a first prompt take."""
        column = sum(part[0, :, 0].nbytes for layer in processed.layers for part in (layer.keys, layer.values))
        return int(CACHE_SHARE * free_bytes(str(self._device)) / (column * self._places.columns))

    def _keep(self, kept: Sequence[int]) -> list[int]:
        """Drop all slots but these; return those that are free."""
        index = torch.tensor(list(kept), device=self._device)
        for layer in self._layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[index], layer.values[index]
        self._said = {at: self._said[slot] for at, slot in enumerate(kept) if slot in self._said}
        self._owner = [self._owner[slot] for slot in kept]
        self._cursors = [self._cursors[slot] for slot in kept]
        self._seen, self._next = self._seen[index], self._next[index]
        self._places.rows, self._places.cursor = torch.arange(len(kept), device=self._device), self._places.cursor[index]
        return [slot for slot, owner in enumerate(self._owner) if owner is None]


def _likeliest(logits: Tensor) -> Tensor:
    """Return the likeliest last token of each row, `[rows, 1]`; the search is six times as fast in float32 as in bfloat16.

    >>> _likeliest(torch.tensor([[[9.0, 0.0], [1.0, 2.0]]]))
    tensor([[1]])
    """
    return logits[:, -1].float().argmax(-1, keepdim=True)
