"""How does a file get onto the disk so that a reader never sees half of it?

One door for every write: a temporary name beside the target, fsync, then one rename. A folder becomes an artifact when
its manifest (size and sha256 of every file) is written last and the whole folder is renamed into place; readers ignore
folders without one. Writing straight into the target, as `save_pretrained` does, leaves an unloadable folder behind when
the process dies in the middle.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError, VerificationError

MANIFEST = "quantkit_manifest.json"


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        _sync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, data: Any) -> None:
    """Replace `path` by `data` as JSON that diffs well: indented, keys in their order, non-finite numbers refused."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, *, max_bytes: int = 64 * 1024 * 1024) -> Any:
    """Return the JSON data of a file.

    Raises:
        UsageError: the file is missing, larger than `max_bytes`, not UTF-8 or not JSON.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise UsageError(f"{path}: {path.stat().st_size} bytes; at most {max_bytes} are read as JSON")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid JSON: {error}") from None


def sha256_of(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def new_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on success it gets a manifest and becomes `target` in one rename.

    On any error the temporary folder is removed and what stood at `target` is untouched.

    Raises:
        UsageError: `target` exists and `overwrite` is off, or its parent cannot be written.
    """
    refuse_existing(target, overwrite=overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".writing-"))
    except OSError as error:
        raise UsageError(f"{target.parent}: cannot be written: {error.strerror or error}") from None
    try:
        yield temporary
        write_manifest(temporary)
        temporary.chmod(0o755)
        if target.exists():
            refuse_existing(target, overwrite=overwrite)
            old = Path(tempfile.mkdtemp(dir=target.parent, prefix=".replaced-"))
            target.replace(old / target.name)
            temporary.replace(target)
            shutil.rmtree(old)
        else:
            temporary.replace(target)
        _sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Raise `UsageError` when `target` is there and may not be replaced."""
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists; choose another output folder or pass --overwrite to replace it")


def write_manifest(folder: Path) -> None:
    """Make every file of `folder` durable and record its size and sha256."""
    entries = {}
    for path in sorted(item for item in folder.rglob("*") if item.is_file() and item.name != MANIFEST):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        path.chmod(0o644)
        entries[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    write_json(folder / MANIFEST, {"schema_version": 1, "files": entries})


def read_manifest(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Return file name → `{size, sha256}`, or None when the folder was never committed.

    Raises:
        UsageError: the manifest is no manifest.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    data = read_json(path)
    files = data.get("files") if isinstance(data, dict) else None
    if not isinstance(files, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and isinstance(entry.get("size"), int)
        for entry in files.values()
    ):
        raise UsageError(f"{path}: not a manifest; `files` must map names to size and sha256")
    return files


def artifact_hash(folder: Path) -> str | None:
    """Return the hash that stands for the folder's content (sha256 over names and file hashes), None without manifest."""
    files = read_manifest(folder)
    if files is None:
        return None
    lines = "".join(f"{name}\0{files[name]['sha256']}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def verify_manifest(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        VerificationError: there is no manifest, or files are missing, added or changed; all are named.
    """
    files = read_manifest(folder)
    if files is None:
        raise VerificationError(f"{folder}: no {MANIFEST}; the folder was not written by quantkit or never finished")
    faults = []
    for name, entry in files.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            faults.append(f"{name!r} points outside the folder")
        elif not path.is_file():
            faults.append(f"{name} is missing")
        elif path.stat().st_size != entry["size"]:
            faults.append(f"{name} has {path.stat().st_size} bytes, the manifest says {entry['size']}")
        elif sha256_of(path) != entry["sha256"]:
            faults.append(f"{name} has other content than the manifest says")
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    faults += [f"{name} is not in the manifest" for name in sorted(here - set(files) - {MANIFEST})]
    if faults:
        raise VerificationError(f"{folder}: {'; '.join(faults)}")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
