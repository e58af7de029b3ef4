"""Is what stands at a path always whole: the old, or the new, but never half of it?"""

import json
import os
from pathlib import Path

import pytest

from quantkit.errors import UsageError, VerificationError, WriteError
from quantkit.files import (
    MANIFEST,
    artifact_hash,
    new_folder,
    read_json,
    read_manifest,
    verify_manifest,
    write_json,
    write_text,
)
from quantkit.locks import hold


def make_folder(target: Path, text: str = "weights", *, overwrite: bool = False) -> Path:
    with new_folder(target, overwrite=overwrite) as folder:
        (folder / "model.bin").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "config.json").write_text("{}")
    return target


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_whole_with_its_manifest(tmp_path):
    target = make_folder(tmp_path / "a" / "artifact")
    verify_manifest(target)
    assert sorted(read_manifest(target) or {}) == ["model.bin", "sub/config.json"]
    assert names(tmp_path / "a") == ["artifact"]


def test_a_temporary_file_of_a_dead_writer_goes_and_that_of_a_living_one_is_waited_for(tmp_path, monkeypatch):
    (tmp_path / ".a.txt.quantkit-tmp").write_text("half")
    write_text(tmp_path / "a.txt", "new")
    assert names(tmp_path) == ["a.txt"]
    (tmp_path / ".a.txt.quantkit-tmp").write_text("half")
    handle = hold(tmp_path / ".a.txt.quantkit-tmp", os.O_WRONLY)
    assert handle is not None
    monkeypatch.setattr("quantkit.files.single.LONGEST_WAIT_S", 0.05)
    write_text(tmp_path / "a.txt", "newer")
    assert (tmp_path / "a.txt").read_text() == "newer"
    assert names(tmp_path) == [".a.txt.quantkit-tmp", "a.txt"]
    os.close(handle)
    write_text(tmp_path / "a.txt", "newest")
    assert names(tmp_path) == ["a.txt"]


def test_text_is_replaced_in_one_step_and_an_error_keeps_the_old(tmp_path, monkeypatch):
    path = tmp_path / "notes" / "a.txt"
    write_text(path, "old")

    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    said = r"a\.txt: could not be written: No space left on device; what stood there before is untouched"
    with pytest.raises(WriteError, match=said):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(path.parent) == ["a.txt"]
    monkeypatch.undo()
    monkeypatch.setattr("quantkit.files.single.sync_folder", fail)
    with pytest.raises(WriteError, match="written, but the disk did not confirm it: No space left"):
        write_text(path, "new")


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


def test_a_file_name_that_is_not_utf8_is_written_as_text_that_every_reader_takes(tmp_path):
    name = os.fsdecode(b"zahlen-\xfc.parquet")
    write_json(tmp_path / "record.json", {"data": name})
    assert read_json(tmp_path / "record.json") == {"data": r"zahlen-\udcfc.parquet"}
    write_text(tmp_path / "card.md", name)
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == r"zahlen-\udcfc.parquet"
