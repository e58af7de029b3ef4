"""R6: sixteen processes update one registry and are killed at random; every update is there, or was never said to be done."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import UsageError
from quantkit.files import making, new_folder, verify_manifest
from quantkit_registry.store import Registry
from tests.registry import records_of
from tests.reliability.faults.cases import EVER, HASH, listed
from tests.reliability.faults.models import scratch
from tests.reliability.faults.walks import leftovers
from tests.reliability.promises import amount

__all__ = ["scratch"]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are copied and killed")
PROCESSES = 16
ARTIFACT_EVERY, CONTENDED_EVERY = 20, 7
LIVES = (1, 4)
"""How many updates a process does, fewest and most, before it is killed at a random moment of one of the next."""


def update(root: Path, worker: int, number: int) -> None:
    """Do one update: an artifact, a result that all processes write, or, mostly, a result of its own."""
    if number % ARTIFACT_EVERY == 0:
        records_of.commit_adapter(root, name=artifact_name(worker, number), created_at=EVER)
    elif number % CONTENDED_EVERY == 0:
        Registry(root).add_result(HASH, "contended", {"worker": worker, "number": number, "rows": [worker] * 500})
    else:
        Registry(root).add_result(HASH, f"task-{worker}-{number}", {"worker": worker, "number": number})


def artifact_name(worker: int, number: int) -> str:
    return f"Base-d{worker}x{number}_SFT_LoRa8_QLORA_w4_headbf16"


def is_there(root: Path, worker: int, number: int, results: dict[str, Any], artifacts: dict[str, str]) -> bool:
    if number % ARTIFACT_EVERY == 0:
        return artifact_name(worker, number) in artifacts
    if number % CONTENDED_EVERY == 0:
        found = results["contended"]  # the last one, whoever that was, but whole
        return bool(found["rows"] == [found["worker"]] * 500)
    return results.get(f"task-{worker}-{number}") == {"worker": worker, "number": number}


def in_a_copy(action: Callable[[], None]) -> int:
    """Run something in a copy of this process and return its id."""
    process = os.fork()
    if process:
        return process
    try:
        action()
        os._exit(0)
    except BaseException:
        os._exit(1)


def start(root: Path, log: Path, worker: int, updates: int, chance: random.Random | None) -> int:
    """Go on with a worker's updates after the last that it began; with a chance, the kernel kills it in one of them.

    The moment is drawn from how long the update before took, so that as many die on a fast machine as on a slow one.
    """
    begun = [int(line.split()[1]) for line in log.read_text().splitlines()] if log.exists() else [0]
    first = max(begun) + 1
    safe_until = first + chance.randint(*LIVES) if chance else updates + 1
    parts = [chance.uniform(0.01, 0.99) for _ in range(updates)] if chance else []

    def work() -> None:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        took_s = 0.0
        for number in range(first, updates + 1):
            began_s = time.monotonic()
            os.write(handle, f"begun {number}\n".encode())
            if number >= safe_until:
                signal.setitimer(signal.ITIMER_REAL, max(1e-6, took_s * parts[number - 1]))
            update(root, worker, number)
            os.write(handle, f"done {number}\n".encode())
            took_s = time.monotonic() - began_s

    return in_a_copy(work)


def under_fire(root: Path, logs: Path, updates: int, kills: int) -> int:
    """Let all workers do their updates, each killed at random moments and started again; return how often that happened."""
    chance, killed = random.Random(0), 0
    log_of = {worker: logs / f"{worker}.log" for worker in range(PROCESSES)}

    def again(worker: int) -> int:
        return start(root, log_of[worker], worker, updates, chance if killed < kills else None)

    running = {again(worker): worker for worker in log_of}
    while running:
        time.sleep(0.005)
        for process in list(running):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                worker, code = running.pop(process), os.waitstatus_to_exitcode(status)
                assert code in (0, -signal.SIGALRM), f"worker {worker} ended with {code}"
                if code:
                    killed += 1
                    running[again(worker)] = worker
    return killed


def test_updates_under_fire_are_kept_or_were_never_said_to_be_done(scratch: Path, figure: Any) -> None:
    root, logs = scratch / "registry", scratch / "logs"
    logs.mkdir()
    updates = amount(25, 200)
    killed = under_fire(root, logs, updates, kills=amount(40, 400))
    results, artifacts = Registry(root).results(HASH), listed(root)
    lost, failed = [], []
    for worker in range(PROCESSES):
        done = {int(line.split()[1]) for line in (logs / f"{worker}.log").read_text().splitlines() if line.startswith("done")}
        failed += [(worker, number) for number in range(1, updates + 1) if number not in done]
        lost += [(worker, number) for number in done if not is_there(root, worker, number, results, artifacts)]
    print(f"{killed} kills, {len(failed)} updates reported failed, {len(lost)} lost: {lost[:5]}")
    assert 0 < len(failed) <= killed
    assert killed >= amount(20, 200)
    for worker, number in failed:
        if artifact_name(worker, number) not in artifacts:
            update(root, worker, number)
    assert leftovers(root) == [], "doing again what failed clears away what the killed ones left"
    figure("R6", PROCESSES * updates - len(lost), PROCESSES * updates)


def race(action: Callable[[int], None]) -> list[int]:
    """Let sixteen copies of this process begin something at the same moment; return their exit codes."""
    barrier = multiprocessing.get_context("fork").Barrier(PROCESSES)

    def run(number: int) -> None:
        barrier.wait()
        try:
            action(number)
        except UsageError as error:
            os._exit(error.exit_code)

    started = [in_a_copy(lambda number=number: run(number)) for number in range(PROCESSES)]  # type: ignore[misc]
    return sorted(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started)


def write(target: Path, text: str, *, overwrite: bool) -> None:
    with new_folder(target, overwrite=overwrite) as folder:
        for part in range(3):
            (folder / f"{part}.txt").write_text(text * 100)


def test_of_runs_that_take_one_name_one_gets_it_and_the_others_are_told(scratch: Path) -> None:
    for round_ in range(amount(2, 20)):
        target = scratch / "registry" / f"artifact-{round_}"
        codes = race(lambda number, target=target: write(target, f"{number:02}", overwrite=False))  # type: ignore[misc]
        assert codes == [0] + [2] * (PROCESSES - 1)
        verify_manifest(target)
        assert leftovers(target.parent) == []


def test_runs_that_replace_one_artifact_leave_one_of_theirs_whole(scratch: Path) -> None:
    target = scratch / "registry" / "artifact"
    for _ in range(amount(2, 20)):
        assert race(lambda number: write(target, f"{number:02}", overwrite=True)) == [0] * PROCESSES
        verify_manifest(target)
        assert len({(target / f"{part}.txt").read_text() for part in range(3)}) == 1
    assert leftovers(target.parent) == []


def test_a_run_hears_at_its_start_that_another_is_making_the_same_artifact(scratch: Path) -> None:
    target = scratch / "registry" / "artifact"
    all_tried = multiprocessing.get_context("fork").Barrier(PROCESSES)

    def make(_number: int) -> None:
        try:
            with making(target):
                all_tried.wait()
        except UsageError:
            all_tried.wait()
            raise

    assert race(make) == [0] + [2] * (PROCESSES - 1)
    assert leftovers(scratch) == []


def test_nothing_but_the_folders_is_needed_to_list_them(scratch: Path) -> None:
    """There is no index that could be lost; files that look like one change nothing."""
    root, again = scratch / "registry", scratch / "again"
    for number in range(3):
        records_of.commit_adapter(root, name=artifact_name(0, number), created_at=EVER)
    Registry(root).add_result(HASH, "arith", {"score": 1})
    before = Registry(root).entries()
    again.mkdir()
    for entry in before:
        shutil.copytree(entry.path, again / entry.name)
    assert [entry.hash for entry in Registry(again).entries()] == [entry.hash for entry in before]
    for name in ("index.json", "registry.db", ".index", "results.json"):
        (root / name).write_text("{ damaged")
    (root / "results" / HASH / "half.json.tmp").write_text("{")
    assert Registry(root).entries() == before
    assert Registry(root).results(HASH) == {"arith": {"score": 1}}
