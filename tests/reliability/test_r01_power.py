"""A power failure takes nothing away that was said to be saved: files are durable before they get their name, then the name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.reliability.faults import cases, models
from tests.reliability.faults.calls import Call
from tests.reliability.faults.models import one_thread, scratch, small, tokenizer
from tests.reliability.faults.power import could_be_lost
from tests.reliability.faults.walks import Case, calls_of
from tests.reliability.faults.watch import CAN_WATCH

__all__ = ["one_thread", "scratch", "small", "tokenizer"]
pytestmark = [
    pytest.mark.skipif(not CAN_WATCH, reason="system calls are watched on Linux, x86-64, where ptrace is allowed"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.mark.parametrize(
    "make",
    [
        cases.a_result,
        cases.a_first_result,
        cases.a_registry_update,
        cases.an_overwritten_folder,
        lambda tmp: cases.an_overwritten_folder(tmp, in_two_steps=True),
        cases.a_removed_folder,
        cases.a_finished_block,
    ],
)
def test_small_saves_outlive_a_power_failure(make: Callable[[Path], Case], scratch: Path) -> None:
    case = make(scratch)
    assert could_be_lost(calls_of(case).calls, str(case.root)) == []


@pytest.mark.parametrize("make", [models.dense_model, models.kept_adapter, models.merged_model])
def test_artifacts_outlive_a_power_failure(make: Any, small: Path, tokenizer: Any, scratch: Path) -> None:
    case = make(scratch, small, tokenizer)
    assert could_be_lost(calls_of(case).calls, str(case.root)) == []


def test_a_save_that_does_not_wait_for_the_disk_is_found(scratch: Path) -> None:
    case = cases.an_overwritten_folder(scratch)
    careless = replace(case, save=lambda: _without_syncing_folders(case.save))
    faults = could_be_lost(calls_of(careless).calls, str(case.root))
    assert any("/deep is not durable when it gets the name" in fault for fault in faults)
    assert any("goes before the new names" in fault for fault in faults)


def _without_syncing_folders(save: Callable[[], object]) -> None:
    with (
        patch("quantkit.files.folders.sync_folder", lambda _: None),
        patch("quantkit.files.manifest.sync_folder", lambda _: None),
    ):
        save()


WRITTEN = (Call("open", "/r/.t/a"), Call("write", "/r/.t/a"))
SYNCED = (*WRITTEN, Call("fsync", "/r/.t/a"), Call("fsync", "/r/.t"))
NAMED = (*SYNCED, Call("rename", "/r/.t", "/r/x"))


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ((*WRITTEN, Call("rename", "/r/.t", "/r/x"), Call("fsync", "/r")), ["/r/.t is not durable", "/r/.t/a is not durable"]),
        ((*WRITTEN, Call("fsync", "/r/.t/a"), Call("rename", "/r/.t", "/r/x"), Call("fsync", "/r")), ["/r/.t is not durable"]),
        (NAMED, ["the new names in /r are not durable at the end"]),
        ((*NAMED, Call("unlink", "/r/.t/old"), Call("fsync", "/r")), ["/r/.t/old goes before the new names in /r are durable"]),
        ((*NAMED, Call("fsync", "/r"), Call("unlink", "/r/.t/old")), []),
    ],
)
def test_a_wrong_order_is_found(calls: tuple[Call, ...], said: list[str]) -> None:
    found = could_be_lost(calls, "/r")
    assert len(found) == len(said)
    assert all(text in fault for text, fault in zip(said, found, strict=True))
