"""R2: is each way in which the newest checkpoint can be damaged found and named, and does the run go on as if nothing had been?

Files are cut short, emptied, flipped in one bit, taken away, renamed and swapped. The newest good checkpoint is two steps
older, those are done again, and the end must be that of the run that was never interrupted, bit for bit.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import VerificationError
from quantkit.files import MANIFEST
from quantkit.training.checkpoints import FACTS, checkpoint_folders
from tests.merging.folders import edit_json
from tests.reliability.conftest import Figure
from tests.reliability.promises import FULL
from tests.reliability.training import KINDS, Small, same, settings, state_of
from tests.training.helpers import equal, trained

STEPS, NEWEST, GOOD = 6, 4, 2
ADAPTER = "adapter_model.safetensors"


def cut(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def empty(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(b"")


def gone(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def flipped(name: str) -> Callable[[Path], Any]:
    def flip(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 16
        (folder / name).write_bytes(bytes(content))

    return flip


def of_the_older_one(name: str) -> Callable[[Path], Any]:
    return lambda folder: shutil.copyfile(folder.with_name(f"checkpoint-{GOOD}") / name, folder / name)


CORRUPTIONS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "optimizer cut short": (cut("optimizer.pt"), r"optimizer\.pt has \d+ bytes, the manifest says \d+"),
    "optimizer with one bit flipped": (flipped("optimizer.pt"), r"optimizer\.pt has other content than the manifest says"),
    "optimizer missing": (gone("optimizer.pt"), r"optimizer\.pt is missing"),
    "schedule empty": (empty("scheduler.pt"), r"scheduler\.pt has 0 bytes"),
    "schedule missing": (gone("scheduler.pt"), r"scheduler\.pt is missing"),
    "random states missing": (gone("rng_state.pth"), r"rng_state\.pth is missing"),
    "random states with one bit flipped": (flipped("rng_state.pth"), r"rng_state\.pth has other content"),
    "adapter of another step": (of_the_older_one(ADAPTER), r"adapter_model\.safetensors has other content"),
    "adapter with one bit flipped": (flipped(ADAPTER), r"adapter_model\.safetensors has other content"),
    "step edited": (
        lambda folder: edit_json(folder / "trainer_state.json", global_step=5),
        r"trainer_state\.json has ",
    ),
    "record of the run renamed": (
        lambda folder: (folder / FACTS).rename(folder / "renamed.json"),
        rf"{FACTS} is missing; renamed\.json is not in the manifest",
    ),
    "manifest missing": (gone(MANIFEST), f"no {MANIFEST}"),
    "folder renamed to a later step": (
        lambda folder: folder.rename(folder.with_name("checkpoint-5")),
        r"checkpoint-5: its parts are not of one step: .*says step 4, .*the folder's name says step 5",
    ),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The model, its tokenizer and rows."""
    return Small(tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_checkpoint_is_named_and_the_run_ends_as_if_it_had_not_been_damaged(
    name: str, small: Small, tmp_path: Path, figure: Figure, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = settings(name, max_steps=STEPS, save_steps=GOOD)
    straight = small.fresh(name)
    whole = small.run(straight, chosen, tmp_path / "whole")
    expected = state_of(tmp_path / "whole" / f"checkpoint-{STEPS}")
    small.run_and_stop(small.fresh(name), chosen, tmp_path / "made", after=NEWEST)
    faults = list(CORRUPTIONS)
    first = list(KINDS).index(name)
    tried = faults if FULL else faults[first::4]
    held = 0
    for fault in tried:
        corrupt, said = CORRUPTIONS[fault]
        folder = shutil.copytree(tmp_path / "made", tmp_path / fault)
        corrupt(folder / f"checkpoint-{NEWEST}")
        capsys.readouterr()
        model = small.fresh(name)
        result = small.run(model, chosen.with_changes(resume_from_checkpoint=True), folder)
        out, err = (" ".join(text.split()) for text in capsys.readouterr())
        held += (
            "skipped a checkpoint that is not whole" in err
            and re.search(said, err) is not None
            and "2 steps lost, done again" in out
            and result.resumed_from == GOOD
            and result.losses == whole.losses
            and equal(trained(model), trained(straight))
            and same(state_of(folder / f"checkpoint-{STEPS}"), expected)
        )
    figure("R2", held, len(tried))


def test_with_no_good_checkpoint_left_a_run_says_what_is_wrong_with_each_and_changes_nothing(
    small: Small, tmp_path: Path
) -> None:
    chosen = settings("LoRA", max_steps=STEPS, save_steps=1)
    small.run_and_stop(small.fresh("LoRA"), chosen, tmp_path, after=2)
    gone("optimizer.pt")(tmp_path / "checkpoint-2")
    flipped(ADAPTER)(tmp_path / "checkpoint-1")
    model = small.fresh("LoRA")
    before = trained(model)
    text = r"no checkpoint is whole: .*checkpoint-2: optimizer\.pt is missing \| .*checkpoint-1: adapter_model\.safetensors has"
    with pytest.raises(VerificationError, match=text):
        small.run(model, chosen.with_changes(resume_from_checkpoint=True), tmp_path)
    assert equal(trained(model), before)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["checkpoint-2", "checkpoint-1"]


def test_what_was_saved_since_a_damaged_checkpoint_is_never_removed_in_its_favour(small: Small, tmp_path: Path) -> None:
    """With one checkpoint kept, a damaged one of a later step must not count as the newest."""
    chosen = settings("LoRA", max_steps=STEPS, save_steps=2, save_total_limit=2)
    small.run_and_stop(small.fresh("LoRA"), chosen, tmp_path, after=NEWEST)
    gone("optimizer.pt")(tmp_path / "checkpoint-4")
    again = chosen.with_changes(resume_from_checkpoint=True, save_total_limit=1)
    small.run_and_stop(small.fresh("LoRA"), again, tmp_path, after=3)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["checkpoint-3"]
    assert small.run(small.fresh("LoRA"), again, tmp_path).resumed_from == 3
