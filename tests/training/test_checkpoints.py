"""Does a run go on only from what is whole and its own?"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import QuantkitError, UsageError, VerificationError
from quantkit.files import MANIFEST, verify_manifest, write_manifest
from quantkit.training import checkpoints as module
from quantkit.training.checkpoints import FACTS, checkpoint_folders, clear_checkpoints, find_checkpoint, rotate
from tests.training.helpers import adapted, config, run


@pytest.fixture(scope="module")
def made(tiny_model: Path, data: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints 2, 4 and 6 of one run."""
    folder = tmp_path_factory.mktemp("run")
    run(adapted(tiny_model), data, config(save_steps=2, save_total_limit=3), tokenizer, folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(made, tmp_path / "run")


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoint_folders(folder)]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_checkpoints_are_committed_folders_that_plain_peft_reads(folder: Path, tiny_model: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    assert names(folder) == ["checkpoint-6", "checkpoint-4", "checkpoint-2"]
    for path in checkpoint_folders(folder):
        verify_manifest(path)
    assert not list(folder.rglob("*.bin"))
    model = AutoPeftModelForCausalLM.from_pretrained(folder / "checkpoint-6")
    assert any(bool(item.any()) for name, item in model.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize(
    "part",
    [MANIFEST, FACTS, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "adapter_model.safetensors"],
)
def test_a_checkpoint_without_one_of_its_parts_is_skipped_and_said(
    part: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "checkpoint-6" / part).unlink()
    assert find_checkpoint(folder, True) == folder / "checkpoint-4"
    captured = capsys.readouterr()
    said = " ".join(captured.err.split())
    assert f"skipped a checkpoint that is not whole: {folder / 'checkpoint-6'}" in said
    assert part in said
    assert "it is now broken-checkpoint-6" in said
    assert names(folder) == ["checkpoint-4", "checkpoint-2"]
    assert "2 steps lost, done again" in captured.out


def test_a_part_that_was_never_written_is_missed_even_by_a_manifest_that_agrees(folder: Path) -> None:
    (folder / "checkpoint-6" / "rng_state.pth").unlink()
    (folder / "checkpoint-6" / MANIFEST).unlink()
    write_manifest(folder / "checkpoint-6")
    with pytest.raises(VerificationError, match=r"checkpoint-6: rng_state.pth missing"):
        find_checkpoint(folder, str(folder / "checkpoint-6"))


def test_a_changed_byte_is_noticed(folder: Path) -> None:
    file = folder / "checkpoint-6" / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(VerificationError, match=r"optimizer\.pt has other content"):
        find_checkpoint(folder, str(folder / "checkpoint-6"))


def test_when_no_checkpoint_is_whole_the_run_does_not_start_again_by_itself(folder: Path) -> None:
    for path in checkpoint_folders(folder):
        (path / MANIFEST).unlink()
    with pytest.raises(VerificationError, match=r"no checkpoint is whole: .*checkpoint-6.*checkpoint-2.*remove the folder"):
        find_checkpoint(folder, True)


def test_without_any_checkpoint_a_resuming_run_starts_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_checkpoint(tmp_path, True) is None
    assert "starting at step 0" in capsys.readouterr().out


def test_earlier_checkpoints_are_neither_mixed_in_nor_deleted_unasked(folder: Path) -> None:
    with pytest.raises(UsageError, match="holds checkpoint-6 of an earlier run; set resume_from_checkpoint"):
        find_checkpoint(folder, False)
    assert find_checkpoint(folder, False, overwrite=True) is None
    assert names(folder) != []
    (folder / "checkpoint-6").rename(folder / "broken-checkpoint-6")
    clear_checkpoints(folder)
    assert list(folder.iterdir()) == []


def test_a_named_checkpoint_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"resume_from_checkpoint: .*gone: no such folder"):
        find_checkpoint(tmp_path, str(tmp_path / "gone"))


def test_what_a_killed_process_left_is_removed(folder: Path) -> None:
    (folder / ".writing-x").mkdir()
    find_checkpoint(folder, True)
    assert not (folder / ".writing-x").exists()


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        ("checkpoint-9", "quantkit_training.json says step 6, .*trainer_state.json says step 6, the folder's name says step 9"),
        ("checkpoint-5", "the folder's name says step 5"),
    ],
)
def test_a_checkpoint_under_another_steps_name_is_not_that_steps(rename: str, said: str, folder: Path) -> None:
    named = (folder / "checkpoint-6").rename(folder / rename)
    with pytest.raises(VerificationError, match=f"its parts are not of one step: .*{said}"):
        find_checkpoint(folder, str(named))


@pytest.mark.parametrize(
    ("file", "change", "error", "said"),
    [
        ("trainer_state.json", {"global_step": 5}, VerificationError, "trainer_state.json says step 5"),
        (FACTS, {"losses": [1.0]}, VerificationError, r"\(losses\) says step 1"),
        (FACTS, {"facts": {}}, VerificationError, "says processes None"),
        (FACTS, {"facts": {"processes": 2}}, VerificationError, "rng_state_0.pth, rng_state_1.pth missing"),
        (FACTS, {"schema_version": 1}, UsageError, "schema_version is 1, this quantkit reads 2; go on with the version"),
        (FACTS, {"something": 1}, UsageError, "unknown key 'something'"),
    ],
)
def test_parts_that_contradict_each_other_are_noticed_even_where_the_manifest_agrees(
    file: str, change: dict[str, Any], error: type[QuantkitError], said: str, folder: Path
) -> None:
    path = folder / "checkpoint-6"
    (path / file).write_text(json.dumps(json.loads((path / file).read_text()) | change))
    write_manifest(path)
    with pytest.raises(error, match=said):
        find_checkpoint(folder, str(path))


def test_adapter_weights_that_were_never_written_are_missed(folder: Path) -> None:
    (folder / "checkpoint-6" / "adapter_model.safetensors").unlink()
    write_manifest(folder / "checkpoint-6")
    with pytest.raises(VerificationError, match=r"adapter_model\.safetensors missing"):
        find_checkpoint(folder, str(folder / "checkpoint-6"))


def test_steps_lost_are_counted_by_what_checkpoints_held_not_by_their_names(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "checkpoint-6").rename(folder / "checkpoint-99")
    assert find_checkpoint(folder, True) == folder / "checkpoint-4"
    assert "2 steps lost, done again" in capsys.readouterr().out


def test_what_is_kept_is_counted_from_the_newest_commit(folder: Path) -> None:
    """A run that went back to step 2 and saved step 4: step 6 is from before, and must not push step 4 out."""
    rotate(folder, keep=1, newest=4)
    assert names(folder) == ["checkpoint-6", "checkpoint-4"]


def test_weights_that_load_as_others_than_were_saved_are_refused(
    folder: Path, tiny_model: Path, data: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.training import resumable

    monkeypatch.setattr(resumable, "weights_sha256", lambda _: "another")
    with pytest.raises(VerificationError, match="the loaded weights are not those that were saved"):
        run(adapted(tiny_model), data, config(resume_from_checkpoint=True), tokenizer, folder)


def test_a_full_disk_leaves_the_last_good_checkpoint(
    tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.training import resumable

    def write(path: Path, content: Any) -> None:
        if content["step"] == 4:
            raise OSError(28, "No space left on device")
        original(path, content)

    original = resumable.write_json
    monkeypatch.setattr(resumable, "write_json", write)
    with pytest.raises(QuantkitError, match=r"checkpoint-4: the checkpoint cannot be written: .*No space.*checkpoint-2"):
        run(adapted(tiny_model), data, config(save_steps=2), tokenizer, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    verify_manifest(tmp_path / "checkpoint-2")


def test_a_folder_that_cannot_be_written_is_an_error(tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file: cannot be written"):
        run(adapted(tiny_model), data, config(max_steps=1), tokenizer, tmp_path / "file")


def test_steps_are_read_from_names() -> None:
    assert module.step_of(Path("a/checkpoint-12")) == 12
    assert module.step_of(Path("a/best")) == 0


def test_an_old_checkpoint_that_cannot_be_removed_ends_no_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: Path, *_: Any) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "rename", fail)
    rotate(folder, keep=1, newest=6)
    assert "an old checkpoint stays" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr(module, "rename_new", fail)
    (folder / "checkpoint-6" / "optimizer.pt").unlink()
    with pytest.raises(QuantkitError, match=r"checkpoint-6: could not be renamed: Read-only file system.*it is as it was"):
        find_checkpoint(folder, True)
