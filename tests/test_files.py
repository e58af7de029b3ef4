"""Is what stands at a path always whole: the old, or the new, but never half of it?"""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from quantkit.errors import UsageError, VerificationError
from quantkit.files import (
    MANIFEST,
    artifact_hash,
    new_folder,
    read_json,
    read_manifest,
    refuse_existing,
    verify_manifest,
    write_json,
    write_text,
)


def make_folder(target: Path, text: str = "weights", *, overwrite: bool = False) -> Path:
    with new_folder(target, overwrite=overwrite) as folder:
        (folder / "model.bin").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "config.json").write_text("{}")
    return target


def fail_half_way(target: Path, error: BaseException) -> None:
    with new_folder(target, overwrite=True) as folder:
        (folder / "model.bin").write_text("new")
        raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_whole_with_its_manifest(tmp_path):
    target = make_folder(tmp_path / "a" / "artifact")
    verify_manifest(target)
    assert sorted(read_manifest(target) or {}) == ["model.bin", "sub/config.json"]
    assert names(tmp_path / "a") == ["artifact"]


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


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from quantkit import files
    point, target = sys.argv[1], Path(sys.argv[2])
    calls = 0
    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)
    if point == "inside":
        pass
    elif point == "manifest":
        files.write_manifest = die
    else:
        real = Path.replace
        def replace(self, other):
            global calls
            if self.name.startswith(".writing") or Path(other).parent.name.startswith(".replaced"):
                calls += 1
                if calls == int(point):
                    die()
            return real(self, other)
        Path.replace = replace
    with files.new_folder(target, overwrite=True) as folder:
        (folder / "model.bin").write_text("new")
        if point == "inside":
            die()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("point", ["inside", "manifest", "1"])
def test_a_kill_at_any_moment_leaves_the_old_or_nothing(tmp_path, point, exists):
    target = tmp_path / "artifact"
    if exists:
        make_folder(target, "old")
    script = [sys.executable, "-c", textwrap.dedent(KILLED), point, str(target)]
    assert subprocess.run(script, check=False).returncode == -signal.SIGKILL
    committed = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert committed == ([target] if exists else [])
    if exists:
        verify_manifest(target)
        assert (target / "model.bin").read_text() == "old"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_kill_between_the_two_renames_of_an_overwrite_loses_neither(tmp_path):
    target = make_folder(tmp_path / "artifact", "old")
    subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), "2", str(target)], check=False)
    kept = {(path / "model.bin").read_text() for path in (*tmp_path.glob(".replaced-*/artifact"), *tmp_path.glob(".writing-*"))}
    assert kept == {"old", "new"}


def test_text_is_replaced_in_one_step_and_an_error_keeps_the_old(tmp_path, monkeypatch):
    path = tmp_path / "notes" / "a.txt"
    write_text(path, "old")

    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(path.parent) == ["a.txt"]


def test_json_is_written_to_diff_well(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    assert (tmp_path / "a.json").read_text() == '{\n  "b": 1,\n  "a": "é"\n}\n'


def test_a_number_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"{", "a.json: not valid JSON: "),
        (b"\xff\xfe", "a.json: not valid JSON: "),
        (b"[" * 100_000, "a.json: not valid JSON: "),
        (b"1" * 2_000, "a.json: 2000 bytes; at most 1000 are read as JSON"),
    ],
)
def test_a_file_that_is_no_json_is_one_line(tmp_path, content, text):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UsageError, match=text):
        read_json(tmp_path / "a.json", max_bytes=1000 if len(content) < 10_000 else 10**9)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"a.json: cannot be read: No such file"):
        read_json(tmp_path / "a.json")


def corrupt(folder: Path, fault: str) -> None:
    """Damage a committed folder."""
    if fault == "missing":
        (folder / "model.bin").unlink()
    elif fault == "shorter":
        (folder / "model.bin").write_text("w")
    elif fault == "changed":
        (folder / "model.bin").write_text("Weights")
    elif fault == "added":
        (folder / "extra.py").write_text("")
    else:
        data = json.loads((folder / MANIFEST).read_text())
        data["files"]["../outside"] = data["files"]["model.bin"]
        (folder / MANIFEST).write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("missing", "model.bin is missing"),
        ("shorter", "model.bin has 1 bytes, the manifest says 7"),
        ("changed", "model.bin has other content than the manifest says"),
        ("added", "extra.py is not in the manifest"),
        ("escape", "'../outside' points outside the folder"),
    ],
)
def test_a_damaged_folder_is_described(tmp_path, fault, text):
    target = make_folder(tmp_path / "artifact")
    corrupt(target, fault)
    with pytest.raises(VerificationError, match=text):
        verify_manifest(target)


def test_a_folder_without_manifest_was_never_finished(tmp_path):
    assert read_manifest(tmp_path) is None
    assert artifact_hash(tmp_path) is None
    with pytest.raises(VerificationError, match="the folder was not written by quantkit or never finished"):
        verify_manifest(tmp_path)


@pytest.mark.parametrize("data", [[], {"files": []}, {"files": {"a": 1}}, {"files": {"a": {"size": "1", "sha256": ""}}}])
def test_a_manifest_of_another_shape_is_refused(tmp_path, data):
    (tmp_path / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(UsageError, match="not a manifest; `files` must map names to size and sha256"):
        read_manifest(tmp_path)


def test_the_hash_stands_for_names_and_contents(tmp_path):
    hashes = {artifact_hash(make_folder(tmp_path / name, text)) for name, text in (("a", "1"), ("b", "1"), ("c", "2"))}
    assert len(hashes) == 2
