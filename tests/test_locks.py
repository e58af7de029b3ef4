"""What a lock says, and what is said where there are none; a lock's life is tested in `tests/tools/test_pending.py`."""

import os
import sys

import pytest

from quantkit.locks import Lock, NoLocksError, hold


def test_a_file_system_without_locks_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    said = "work cannot be shared between processes on this file system: Operation not supported"
    with pytest.raises(NoLocksError, match=said):
        Lock(tmp_path / "x.lock").acquire()
    with pytest.raises(NoLocksError, match=said):
        hold(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_system_without_locks_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(NoLocksError, match="work cannot be shared between processes here: this system has no flock"):
        Lock(tmp_path / "x.lock").acquire()


def test_a_folder_is_held_by_one_and_wherever_it_is_renamed_to(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    handle = hold(folder)
    assert handle is not None
    assert hold(folder) is None
    folder = folder.rename(tmp_path / "b")
    assert hold(folder) is None
    os.close(handle)
    handle = hold(folder)
    assert handle is not None
    os.close(handle)


def test_a_link_is_not_held_in_place_of_what_it_points_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match="link"):
        hold(tmp_path / "link")
