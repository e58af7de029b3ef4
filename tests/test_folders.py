"""Is the folder at a path always whole: the old, or the new, but never half of it, whoever dies and whoever else is at it?"""

import os
import sys
import time
from pathlib import Path

import pytest

from quantkit.errors import UsageError, WriteError
from quantkit.files import making, new_folder, refuse_existing, remove_folder, remove_leftovers, verify_manifest, write_text
from quantkit.files.renaming import exchange, rename_new
from tests.test_files import make_folder, names


def fail_half_way(target: Path, error: BaseException) -> None:
    with new_folder(target, overwrite=True) as folder:
        (folder / "model.bin").write_text("new")
        raise error


def test_an_error_inside_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fail_half_way(tmp_path / "artifact", KeyboardInterrupt())
    assert names(tmp_path) == []


def test_an_existing_folder_is_not_touched_without_overwrite(tmp_path):
    target = make_folder(tmp_path / "artifact", "old")
    with pytest.raises(UsageError, match=r"artifact exists; choose another output folder or pass --overwrite"):
        make_folder(target, "new")
    assert (target / "model.bin").read_text() == "old"
    with pytest.raises(UsageError, match="exists"):
        refuse_existing(target, overwrite=False)


def test_overwriting_replaces_the_whole_folder(tmp_path):
    target = make_folder(tmp_path / "artifact", "old")
    (target / "left.over").write_text("")
    make_folder(target, "new", overwrite=True)
    assert (target / "model.bin").read_text() == "new"
    assert not (target / "left.over").exists()
    assert names(tmp_path) == ["artifact"]


def test_overwriting_that_fails_keeps_the_old_folder(tmp_path):
    target = make_folder(tmp_path / "artifact", "old")
    with pytest.raises(OSError, match="No space left"):
        fail_half_way(target, OSError(28, "No space left on device"))
    verify_manifest(target)
    assert (target / "model.bin").read_text() == "old"
    assert names(tmp_path) == ["artifact"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Exception("No space left on device (os error 28)")])
def test_a_full_disk_is_one_line_whoever_meets_it(error, tmp_path):
    with pytest.raises(WriteError, match=r"artifact: could not be written: No space left on device.*; nothing was left behind"):
        fail_half_way(tmp_path / "artifact", error)
    with pytest.raises(ValueError, match="something else"):
        fail_half_way(tmp_path / "artifact", ValueError("something else"))


def test_a_folder_that_appeared_meanwhile_is_not_overwritten(tmp_path):
    target = tmp_path / "artifact"
    with pytest.raises(UsageError, match="exists"), new_folder(target):
        make_folder(target, "other")
    assert (target / "model.bin").read_text() == "other"
    assert names(tmp_path) == ["artifact"]


def test_a_parent_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file: cannot be written: "), new_folder(tmp_path / "file" / "artifact"):
        pass


@pytest.fixture(params=["in one step", "in two steps"])
def replacing(request, monkeypatch):
    """How an existing folder is replaced: by exchanging two names, or, where that is not possible, by two renames."""
    if request.param == "in two steps":
        monkeypatch.setattr("quantkit.files.folders.exchange", lambda *_: False)
    return request.param


def test_a_folder_is_replaced_in_one_step_or_two(tmp_path, replacing):
    target = make_folder(tmp_path / "artifact", "old")
    make_folder(target, "new", overwrite=True)
    assert (target / "model.bin").read_text() == "new"
    assert names(tmp_path) == ["artifact"]


def test_a_disk_that_does_not_confirm_the_new_name_gets_the_old_one_back(tmp_path, replacing, monkeypatch):
    target = make_folder(tmp_path / "artifact", "old")

    def refuse(folder):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("quantkit.files.folders.sync_folder", refuse)
    with pytest.raises(WriteError, match="artifact: could not be written: Input/output error; nothing was left behind"):
        make_folder(target, "new", overwrite=True)
    with pytest.raises(WriteError, match="other: could not be written: Input/output error; nothing was left behind"):
        make_folder(tmp_path / "other")
    assert (target / "model.bin").read_text() == "old"
    assert names(tmp_path) == ["artifact"]


def test_an_artifact_moved_aside_by_a_killed_run_is_put_back(tmp_path):
    make_folder(tmp_path / ".replaced-x" / "artifact", "old")
    assert remove_leftovers(tmp_path) == ["put artifact back"]
    verify_manifest(tmp_path / "artifact")
    make_folder(tmp_path / ".replaced-y" / "artifact", "older")
    assert remove_leftovers(tmp_path) == []
    assert (tmp_path / "artifact" / "model.bin").read_text() == "old"
    assert names(tmp_path) == ["artifact"]


def test_the_next_writer_finds_the_artifact_that_was_moved_aside(tmp_path):
    make_folder(tmp_path / ".replaced-x" / "artifact", "old")
    with pytest.raises(UsageError, match="artifact exists"), new_folder(tmp_path / "artifact"):
        pass
    assert names(tmp_path) == ["artifact"]


def test_what_a_dead_process_left_goes_and_what_a_living_one_is_at_stays(tmp_path):
    with new_folder(tmp_path / "one") as living:
        for name in (".writing-dead", ".removing-dead"):
            (tmp_path / name / "deep").mkdir(parents=True)
        for name in (".one.quantkit-making", ".a.json.quantkit-tmp", ".foreign.tmp"):
            (tmp_path / name).write_text("")
        assert remove_leftovers(tmp_path) == ["removed .removing-dead", "removed .writing-dead"]
        make_folder(tmp_path / "two")
        assert names(tmp_path) == [".foreign.tmp", living.name, "two"]
    assert names(tmp_path) == [".foreign.tmp", "one", "two"]
    (tmp_path / ".writing-00000000-x").mkdir()  # of another machine, whose lock need not show here
    assert remove_leftovers(tmp_path) == []
    assert remove_leftovers(tmp_path, older_than_s=-1) == ["removed .writing-00000000-x"]
    assert remove_leftovers(tmp_path / "nowhere") == []


def test_without_locks_only_what_is_a_day_old_counts_as_left(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    left = tmp_path / ".writing-x"
    (left / "deep").mkdir(parents=True)
    make_folder(tmp_path / "artifact")
    assert names(tmp_path) == [".writing-x", "artifact"]
    two_days_ago = time.time() - 2 * 86_400
    for path in (left / "deep", left):
        os.utime(path, (two_days_ago, two_days_ago))
    write_text(tmp_path / "a.txt", "text")
    assert remove_leftovers(tmp_path) == ["removed .writing-x"]
    with making(tmp_path / "two"):
        assert names(tmp_path) == ["a.txt", "artifact"]


def test_two_runs_do_not_make_one_artifact_at_the_same_time(tmp_path):
    with making(tmp_path / "artifact"):
        with pytest.raises(UsageError, match="another process is making it right now; wait for it, or choose another name"):
            making(tmp_path / "artifact").__enter__()
        with making(tmp_path / "other"):
            make_folder(tmp_path / "other")
    assert names(tmp_path) == ["other"]
    with pytest.raises(UsageError, match="other exists"), making(tmp_path / "other"):
        pass
    with making(tmp_path / "other", overwrite=True):
        pass
    with making(tmp_path / ("x" * 255)):
        pass
    with making(tmp_path / "deep" / "er" / "artifact"):
        pass
    assert names(tmp_path) == ["other"]


def test_a_folder_is_removed_in_one_step(tmp_path, monkeypatch):
    target = make_folder(tmp_path / "artifact")
    seen = []
    monkeypatch.setattr("quantkit.files.folders.remove_tree", lambda path: seen.append((path.name[:10], target.exists())))
    remove_folder(target)
    assert seen == [(".removing-", False)]
    with pytest.raises(WriteError, match=r"artifact: could not be removed: No such file or directory: .*; it is as it was"):
        remove_folder(target)


def test_a_link_is_replaced_and_what_it_points_to_is_not(tmp_path):
    make_folder(tmp_path / "elsewhere" / "real", "old")
    (tmp_path / "artifact").symlink_to(tmp_path / "elsewhere" / "real")
    make_folder(tmp_path / "artifact", "new", overwrite=True)
    assert not (tmp_path / "artifact").is_symlink()
    assert (tmp_path / "elsewhere" / "real" / "model.bin").read_text() == "old"
    assert names(tmp_path) == ["artifact", "elsewhere"]


def test_names_are_changed_where_the_system_knows_no_exchange(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "elsewhere")
    make_folder(tmp_path / "artifact", "old")
    make_folder(tmp_path / "artifact", "new", overwrite=True)
    assert exchange(tmp_path / "artifact", tmp_path / "artifact") is False
    with pytest.raises(FileExistsError):
        rename_new(tmp_path / "artifact", tmp_path / "artifact")
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "artifact", tmp_path / "nowhere")
