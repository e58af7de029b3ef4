"""Do processes that end for one reason say it once, and leave with one code?"""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from quantkit import joining
from quantkit import processes as module
from quantkit.console import say, silence, table
from quantkit.errors import QuantkitError, UsageError, VerificationError
from quantkit.joining import together
from quantkit.modeling import resolve_device
from quantkit.processes import Processes, said_by_first

LOST = "[/gloo/transport/tcp/pair.cc:547] Connection closed by peer"


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> tuple[Processes, Processes]:
    """Two processes that share a store."""
    from torch.distributed import HashStore

    monkeypatch.setattr(module, "GRACE_S", 0.2)
    store = HashStore()
    return Processes(first=True, size=2, store=store), Processes(first=False, size=2, store=store)


def test_the_first_that_fails_says_why_and_the_other_leaves_with_its_code(pair: tuple[Processes, Processes]) -> None:
    first, second = pair
    with pytest.raises(VerificationError, match="not what it was"):
        second.failed(VerificationError("not what it was"))
    with pytest.raises(SystemExit) as left:
        first.failed(RuntimeError(LOST))
    assert left.value.code == VerificationError.exit_code


def test_an_error_that_all_have_is_raised_once(pair: tuple[Processes, Processes]) -> None:
    first, second = pair
    with pytest.raises(UsageError):
        first.failed(UsageError("no such folder"))
    with pytest.raises(SystemExit) as left:
        second.failed(UsageError("no such folder"))
    assert left.value.code == UsageError.exit_code


def test_a_signal_ends_both_as_interrupted(pair: tuple[Processes, Processes]) -> None:
    first, second = pair
    with pytest.raises(KeyboardInterrupt):
        first.failed(KeyboardInterrupt())
    with pytest.raises(SystemExit) as left:
        second.failed(KeyboardInterrupt())
    assert left.value.code == 130


def test_a_process_whose_partner_died_without_a_word_says_so(pair: tuple[Processes, Processes]) -> None:
    wrapped = QuantkitError("the checkpoint cannot be written")
    wrapped.__context__ = RuntimeError(LOST)
    with pytest.raises(QuantkitError, match=r"was left alone: another of the 2 ended without a word .*resume_from_checkpoint"):
        pair[0].failed(wrapped)


def test_who_waits_for_the_first_gets_its_code(pair: tuple[Processes, Processes]) -> None:
    first, second = pair
    codes: list[int] = []
    waiting = threading.Thread(target=lambda: codes.append(second.follow()))
    waiting.start()
    assert first.end(3) == 3
    waiting.join(timeout=5)
    assert codes == [3]


def test_one_goes_first_and_the_other_finds_what_it_wrote(pair: tuple[Processes, Processes], tmp_path: Path) -> None:
    first, second = pair
    found: list[bool] = []

    def follow() -> None:
        with second.one_first():
            found.append((tmp_path / "base").exists())

    waiting = threading.Thread(target=follow)
    waiting.start()
    with first.one_first():
        (tmp_path / "base").touch()
    waiting.join(timeout=5)
    assert found == [True]


def test_nobody_waits_for_a_first_that_failed_before(pair: tuple[Processes, Processes]) -> None:
    first, second = pair
    with pytest.raises(UsageError):
        first.failed(UsageError("no rows"))
    with pytest.raises(SystemExit) as left, second.one_first():
        pass
    assert left.value.code == 2


def test_alone_nothing_is_shared_and_errors_are_as_they_were() -> None:
    with together("cpu") as group:
        assert (group.first, group.size, group.end(0)) == (True, 1, 0)
        with group.one_first():
            assert said_by_first(lambda: 7) == 7
    with pytest.raises(ValueError, match="mine"), together("cpu"):
        raise ValueError("mine")


def test_a_half_made_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with (
        pytest.raises(UsageError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set; start with torchrun"),
        together("cpu"),
    ):
        pass


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Processes:
    """A group that `together` takes for two processes."""
    group = Processes(first=True, size=1, store=None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(joining, "_joined", lambda _: group)
    return group


def test_deepspeed_is_refused(two: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UsageError, match="set distributed_type to FSDP with fsdp_version 2, or to MULTI_GPU"), together("cpu"):
        pass
    assert not two.split_by_launcher


def test_a_launcher_s_fsdp_2_is_done_here_and_hidden_from_accelerate(two: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "True")
    with together("cpu") as group:
        assert group.split_by_launcher
        assert os.environ["ACCELERATE_USE_FSDP"] == "false"
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    assert group is two


@pytest.mark.parametrize(
    ("key", "given", "wanted"),
    [
        ("fsdp_version", "1", "2: quantkit splits models with FSDP2"),
        ("fsdp_offload_params", "true", "false: weights stay on their devices"),
        ("fsdp_activation_checkpointing", "true", "false: recompute does that"),
        ("fsdp_cpu_ram_efficient_loading", "true", "false: every process reads the model"),
        ("fsdp_reshard_after_forward", "false", "true: a block's weights are gathered for as long as it computes"),
    ],
)
def test_what_accelerate_s_fsdp_may_not_say(
    key: str, given: str, wanted: str, two: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv(key.upper(), given)
    with pytest.raises(UsageError, match=f"accelerate's configuration has {key} {given}; set it to {wanted}"), together("cpu"):
        pass
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    assert not two.split_by_launcher


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [resolve_device(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda:1", "cuda:1", "cuda:1", "cpu"]
    with pytest.raises(UsageError, match="each of 2 processes has a GPU of its own; use auto or cuda"):
        resolve_device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="torch sees 2 CUDA devices"):
        resolve_device("auto")


def test_a_silent_process_prints_nothing(capsys: Any) -> None:
    silence()
    try:
        say("hidden")
        table("hidden", ["a"], [[1]])
    finally:
        silence(False)
    say("shown")
    captured = capsys.readouterr()
    assert captured.out == "shown\n"
