"""R7: wherever the disk fills up, the previous artifact is intact, nothing temporary stays, and one line says what happened."""

import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import QuantkitError, WriteError
from quantkit.files import new_folder, verify_manifest, write_text
from tests.reliability.faults import cases, models
from tests.reliability.faults.models import one_thread, scratch, small, tokenizer
from tests.reliability.faults.walks import Case, keep_before, leftovers, reset, walk_full
from tests.reliability.faults.watch import CAN_WATCH, Fault
from tests.reliability.promises import amount
from tests.training.helpers import adapted, config, reversed_arithmetic, run

__all__ = ["one_thread", "scratch", "small", "tokenizer"]
pytestmark = pytest.mark.usefixtures("one_thread")
watching = pytest.mark.skipif(not CAN_WATCH, reason="system calls are watched on Linux, x86-64, where ptrace is allowed")
FAULTS: tuple[Fault, ...] = ("full", "short")
Walked = Callable[[Case, int, int], None]


@pytest.fixture
def walked(figure: Any) -> Walked:
    """Fill the disk at so many calls of a save, and cut a write at as many."""

    def walk(case: Case, quick: int, full: int) -> None:
        for fault in FAULTS:
            found = walk_full(case, amount(quick, full), fault)
            print(f"{case.name}, {fault}: {found.held} of {found.tried} held", *found.problems, sep="\n")
            assert found.tried
            figure("R7", found.held, found.tried)

    return walk


@watching
@pytest.mark.parametrize(
    "make",
    [cases.a_result, cases.a_report, cases.a_registry_update, cases.an_overwritten_folder, cases.a_finished_block],
    ids=lambda make: make.__name__,
)
def test_what_is_saved_in_a_moment(make: Callable[[Path], Case], scratch: Path, walked: Walked) -> None:
    walked(make(scratch), 4, 12)


@watching
@pytest.mark.parametrize(
    "make",
    [models.dense_model, models.kept_adapter, models.quantized_model, models.merged_model],
    ids=lambda make: make.__name__,
)
def test_what_takes_hours_to_make(make: Any, small: Path, tokenizer: Any, scratch: Path, walked: Walked) -> None:
    walked(make(scratch, small, tokenizer), 2, 12)


@watching
def test_a_checkpoint(tiny_model: Path, tokenizer: Any, scratch: Path, walked: Walked) -> None:
    from quantkit.training.loop import StepTrainer

    root = scratch / "checkpoints"

    def walk(save: Callable[[], object]) -> None:
        keep_before(root)
        walked(Case("checkpoint", root, save, lambda: cases.checkpoints(root)), 3, 16)
        reset(root)

    settings = config(save_steps=1, max_steps=2, per_device_train_batch_size=1)
    with cases.standing_before(StepTrainer, "_save_checkpoint", lambda self: self.state.global_step == 2, walk):
        run(adapted(tiny_model), reversed_arithmetic(tokenizer), settings, tokenizer, root)
    assert sorted(cases.committed(root)) == ["checkpoint-1", "checkpoint-2"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "quantkit-test", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_disk_that_is_full(small_disk: Path, figure: Any) -> None:
    with new_folder(small_disk / "artifact") as folder:
        (folder / "model.bin").write_bytes(b"old" * 30_000)
    said = r"artifact: could not be written: No space left on device; nothing was left behind"
    with pytest.raises(WriteError, match=said), new_folder(small_disk / "artifact", overwrite=True) as folder:
        (folder / "model.bin").write_bytes(b"new" * 90_000)
    with pytest.raises(WriteError, match=r"a\.json: could not be written: No space left on device; what stood there"):
        write_text(small_disk / "a.json", "x" * 300_000)
    verify_manifest(small_disk / "artifact")
    assert leftovers(small_disk) == []
    assert [path.name for path in small_disk.iterdir()] == ["artifact"]
    figure("R7", 2, 2)


def test_a_file_that_may_not_grow_further(small: Path, tokenizer: Any, tmp_path: Path, figure: Any) -> None:
    """A quota on the size of files ends a write in the same way, in the libraries that write weights, too."""
    case = models.dense_model(tmp_path, small, tokenizer)
    before = case.state()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(QuantkitError, match=r"could not be written: .*File too large.*; nothing was left behind") as told:
            case.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(told.value)
    assert case.state() == before
    assert leftovers(case.root) == []
    figure("R7", 1, 1)
