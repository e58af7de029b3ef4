"""Is memory given back while blocks run, only where it was asked for or where it is scarce?"""

import ctypes
import subprocess
import sys
from contextlib import nullcontext
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit import memory
from quantkit.training import heap, sharding
from quantkit.training import run as training_run
from quantkit.training.heap import give_back, held_small
from quantkit.training.recompute import recomputed
from tests.training.families import family
from tests.training.helpers import adapted, config, run

IDS = torch.tensor([[1, 2, 3]])


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library has no malloc_trim")
def test_giving_back_returns_free_pages_between_tensors_that_live_on() -> None:
    torch.empty(2**25 // 4).zero_()  # raises the size from which glibc maps memory by itself
    tensors = [torch.ones(2**20 // 4) for _ in range(256)]
    kept = tensors[1::2]
    before = heap._resident_bytes()
    del tensors
    give_back()
    assert before - heap._resident_bytes() > 64 * 2**20
    assert all(float(item[0]) == 1 for item in kept)


def test_blocks_ask_for_it_when_the_process_has_grown_and_no_longer_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls, looks = family("Llama"), [], []
    sizes = chain([100, 100, 100 + heap.GROWTH_BYTES + 1, 150], repeat(150 + heap.GROWTH_BYTES))
    monkeypatch.setattr(heap, "_resident_bytes", lambda: looks.append(1) or next(sizes))
    monkeypatch.setattr(heap, "_trim", lambda: lambda _: calls.append(1))
    with held_small(model, "cpu", wanted=True):
        model(input_ids=IDS)  # as before at the first block, larger at the second, then not much larger than after giving back
        assert calls == [1]
    before = len(looks)
    model(input_ids=IDS)
    assert len(looks) == before


@pytest.mark.parametrize("again", ["none", "full"])
def test_blocks_ask_again_before_their_backward_pass(again: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, looks = family("Llama").train(), []
    monkeypatch.setattr(heap, "_resident_bytes", lambda: looks.append(1) or 100)
    monkeypatch.setattr(heap, "_trim", lambda: lambda _: None)
    with recomputed(model, again), held_small(model, "cpu", wanted=True):
        loss = model(input_ids=IDS).logits.sum()
        forward = len(looks)
        loss.backward()
    assert len(looks) - forward == len(model.model.layers) == forward - 1  # once at the start


def test_large_tensors_are_mapped_once_half_of_what_was_free_is_taken_and_no_longer_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, calls = family("Llama"), []
    sizes = chain([100, 100, 151], repeat(500))  # at the start, then before each block
    monkeypatch.setattr(memory, "free_bytes", lambda _: 100)
    monkeypatch.setattr(heap, "_resident_bytes", lambda: next(sizes))
    monkeypatch.setattr(heap, "_trim", lambda: lambda _: calls.append("given back"))
    monkeypatch.setattr(heap, "map_large", lambda size_bytes=heap.MAPPED_BYTES: calls.append(size_bytes))
    with held_small(model, "cpu", wanted=False):
        model(input_ids=IDS)
        model(input_ids=IDS)
        assert calls == [heap.MAPPED_BYTES, "given back"]
    assert calls[2:] == [heap.LARGEST_FROM_HEAP]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library has no mallopt of glibc's")
def test_what_is_freed_of_mapped_tensors_is_the_systems_at_once() -> None:
    """In a process of its own: what lies free in a heap already is filled before anything is mapped."""
    code = """
import torch
from quantkit.training import heap
heap.map_large()
tensors = [torch.ones(2**22 // 4) for _ in range(64)]
kept = tensors[1::2]
before = heap._resident_bytes()
del tensors
print(before - heap._resident_bytes() > 64 * 2**20, all(float(item[0]) == 1 for item in kept))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "True True\n", done.stderr


def test_with_room_to_spare_nothing_is_asked_of_the_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("asked the C library")

    model = family("Llama")
    monkeypatch.setattr(memory, "free_bytes", lambda _: 2**50)
    monkeypatch.setattr(heap, "_trim", lambda: never)
    monkeypatch.setattr(heap, "map_large", never)
    with held_small(model, "cpu", wanted=False):
        model(input_ids=IDS)


def test_nothing_is_watched_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> int:
        raise AssertionError("looked at memory")

    monkeypatch.setattr(heap, "_resident_bytes", never)
    with held_small(family("Llama"), "cuda:0", wanted=True):
        pass


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [({}, False), ({"recompute": "selective"}, True), ({"gradient_checkpointing": True}, True), ({"sharding": "fsdp2"}, True)],
)
def test_a_run_gives_memory_back_where_memory_is_what_counts(  # noqa: PLR0917
    settings: dict[str, Any], wanted: bool, tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    class ReachedError(Exception):
        pass

    def note(*_: Any, wanted: bool) -> Any:
        raise ReachedError(wanted)

    monkeypatch.setattr(training_run, "held_small", note)
    monkeypatch.setattr(training_run, "check_splitting", lambda _: None)  # one process is enough to see it
    monkeypatch.setattr(sharding, "split_over_processes", lambda *_, **__: nullcontext())
    with pytest.raises(ReachedError, match=str(wanted)):
        run(adapted(tiny_model), data, config(**settings), tokenizer, tmp_path)


def test_a_model_without_blocks_and_another_c_library_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with held_small(torch.nn.Linear(2, 2), "cpu", wanted=True):
        pass
    monkeypatch.setattr(heap.sys, "platform", "darwin")
    assert heap._trim() is None
    give_back()
