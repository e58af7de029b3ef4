"""What did a folder hold when it was finished, and does it still?

The manifest names every file with size and sha256, and is written last: a folder without one was never finished. Comparing
sizes and dates, which costs less, misses the bit that flipped and the file that was swapped.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError, VerificationError
from quantkit.files.renaming import sync_folder
from quantkit.files.single import read_json, write_json

MANIFEST = "quantkit_manifest.json"


def sha256_of(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(folder: Path) -> None:
    """Make every file of `folder` durable, and every folder in it, and record sizes and sha256."""
    entries = {}
    items = sorted(folder.rglob("*"))
    for path in (item for item in items if item.is_file() and item.name != MANIFEST):
        path.chmod(0o644)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        entries[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    for path in (item for item in items if item.is_dir()):
        sync_folder(path)
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
