"""Is this the base that the adapter was trained on?

A base's fingerprint is the sha256 over the names and hashes of `config.json` and all weight files, so it does not matter by
which path or hub id the base is reached. Comparing names or commits instead would take a retrained model of the same name,
on which the adapter loads without a word, for the right one.
"""

import hashlib
from functools import lru_cache
from pathlib import Path

from quantkit.errors import UsageError
from quantkit.files import sha256_of

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")


def fingerprint_base(path: Path | str, *, revision: str | None = None) -> str:
    """Return `sha256:…` over configuration and weight files of a folder, one weight file, or a hub id in the local cache.

    Raises:
        UsageError: no weights are there.
    """
    folder = Path(path)
    if not folder.exists():
        from quantkit_registry.hub import cached_folder

        folder = cached_folder(str(path), revision)
    files = weight_files(folder)
    if not files:
        raise UsageError(f"{path}: holds no weight files, so no fingerprint of the base can be taken")
    if folder.is_dir() and (folder / "config.json").is_file():
        files.insert(0, folder / "config.json")
    lines = "".join(f"{file.name}\0{_hash_of(file)}\n" for file in files)
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def weight_files(folder: Path) -> list[Path]:
    """Return a folder's weight files in the order of their names; adapter files are no part of a base."""
    if folder.is_file():
        return [folder]
    found = (path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES and path.is_file())
    return sorted(path for path in found if not path.name.startswith(("adapter_", "training_args", "optimizer", ".")))


def _hash_of(path: Path) -> str:
    status = path.stat()
    return _hash_once(str(path.resolve()), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _hash_once(path: str, size: int, changed_ns: int) -> str:  # noqa: ARG001 (size and time are part of the key)
    return sha256_of(Path(path))
