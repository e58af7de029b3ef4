"""Which artifacts stand in a folder of artifacts, and what was measured on them?

The folders are the truth: an artifact is a subfolder with a manifest, and listing reads the folders each time. Results lie
beside them, one file per artifact hash and task, so concurrent writers never rewrite each other's file; a shared JSON
index, updated by read-modify-write, kept 2 of 400 updates in a test with 8 processes.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quantkit.errors import QuantkitError, UsageError, did_you_mean
from quantkit.files import artifact_hash, put_back, read_manifest, write_json
from quantkit.headers import read_object, refuse_links_out
from quantkit_registry import study
from quantkit_registry.adapters import ADAPTER_CONFIG
from quantkit_registry.records import RECORD_FILE, ArtifactRecord, read_record

ROOT_VARIABLE = "QUANTKIT_REGISTRY"
DEFAULT_ROOT = "artifacts"
RESULTS = "results"
HASH = re.compile(r"[0-9a-f]{64}")
TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
SHORTEST_PREFIX = 4
Origin = Literal["quantkit", "study", "foreign", "broken"]


def default_root() -> Path:
    """Return `$QUANTKIT_REGISTRY`, or `artifacts` in the working folder."""
    return Path(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT).expanduser()


def root_of(output_dir: str) -> Path:
    """Return the folder that a run's `output_dir` means: `artifacts`, the default, is the registry, wherever that is."""
    return default_root() if output_dir == DEFAULT_ROOT else Path(output_dir).expanduser()


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One folder under the root."""

    path: Path
    origin: Origin
    """`quantkit`: committed with a whole record; `broken`: was ours and cannot be read; `study`, `foreign`: not ours."""
    record: ArtifactRecord | None = None
    hash: str | None = None
    """sha256 over the content; None for folders without manifest."""
    size_bytes: int = 0
    fault: str = ""
    """Why it is broken."""

    @property
    def name(self) -> str:
        """Return the folder's name."""
        return self.path.name


class Registry:
    """The artifacts and results under one root folder; a missing root is an empty registry."""

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = default_root() if root is None else Path(root).expanduser()
        if self.root.exists() and not self.root.is_dir():
            raise UsageError(f"{self.root}: is a file; a registry is a folder")

    def entries(self) -> list[Artifact]:
        """Return every folder under the root that holds a model or adapter, ours or not, in the order of names.

        Unfinished folders (`.writing-*`) and whatever holds no model are left out; what cannot be read is marked broken. An
        artifact whose replacement was killed half way stands under its name again.
        """
        if not self.root.is_dir():
            return []
        put_back(self.root)
        try:
            folders = sorted(path for path in self.root.iterdir() if path.is_dir())
        except OSError as error:
            raise UsageError(f"{self.root}: cannot be read: {error.strerror or error}") from None
        found = [self.entry(path) for path in folders if not path.name.startswith(".") and path.name != RESULTS]
        return [artifact for artifact in found if artifact is not None]

    def entry(self, folder: Path) -> Artifact | None:
        """Return what one folder is, or None when it holds no model or adapter."""
        try:
            names = {path.name for path in folder.iterdir()}
            if not {RECORD_FILE, "config.json", ADAPTER_CONFIG} & names and not any(n.endswith(".gguf") for n in names):
                return None
            refuse_links_out(folder)
            files = read_manifest(folder)
            if files is None:
                ours = RECORD_FILE in names and study.is_ours(read_object(folder / RECORD_FILE))
                if ours:
                    return Artifact(path=folder, origin="broken", fault="has no manifest: it was never finished")
                origin: Origin = "study" if study.read_claim(folder) else "foreign"
                return Artifact(path=folder, origin=origin, size_bytes=_size_of(folder))
            size = sum(entry["size"] for entry in files.values())
            return Artifact(
                path=folder, origin="quantkit", record=read_record(folder), hash=artifact_hash(folder), size_bytes=size
            )
        except (QuantkitError, OSError) as error:
            return Artifact(path=folder, origin="broken", fault=str(error))

    def artifacts(self) -> list[Artifact]:
        """Return the committed artifacts of ours."""
        return [artifact for artifact in self.entries() if artifact.origin == "quantkit"]

    def find(self, wanted: str | Path) -> Artifact:
        """Return the artifact of this name, path, or beginning of a hash (at least 4 digits).

        Raises:
            UsageError: nothing or more than one fits.
        """
        text = str(wanted)
        entries = self.entries()
        for artifact in entries:
            if artifact.name == text:
                return artifact
        prefix = text.removeprefix("sha256:").lower()
        if len(prefix) >= SHORTEST_PREFIX and re.fullmatch(r"[0-9a-f]{4,64}", prefix):
            fits = [artifact for artifact in entries if artifact.hash and artifact.hash.startswith(prefix)]
            if len(fits) > 1:
                raise UsageError(f"{text!r} begins the hash of {', '.join(fit.name for fit in fits)}; give more digits")
            if fits:
                return fits[0]
        path = Path(text)
        if path.is_dir():
            if (found := self.entry(path)) is not None:
                return found
            raise UsageError(f"{path}: holds no model and no adapter")
        names = [artifact.name for artifact in entries]
        known = f" quantkit registry ls --root {self.root} lists what is there"
        raise UsageError(f"no artifact under {self.root} is called {text!r}.{did_you_mean(text, names)}{known}")

    def add_result(self, artifact_hash: str, task: str, data: Mapping[str, Any]) -> Path:
        """Keep the result of one task on one artifact, replacing an earlier one, and return its file."""
        path = self._result_folder(artifact_hash) / f"{_task(task)}.json"
        write_json(path, dict(data))
        return path

    def results(self, artifact_hash: str) -> dict[str, dict[str, Any]]:
        """Return task → result of one artifact.

        Raises:
            UsageError: a result's file is damaged.
        """
        folder = self._result_folder(artifact_hash)
        if not folder.is_dir():
            return {}
        files = sorted(path for path in folder.glob("*.json") if TASK.fullmatch(path.stem))
        return {path.stem: read_object(path) for path in files}

    def _result_folder(self, artifact_hash: str) -> Path:
        if not HASH.fullmatch(artifact_hash):
            raise UsageError(f"{artifact_hash[:80]!r} is no artifact hash; 64 hexadecimal digits are wanted")
        return self.root / RESULTS / artifact_hash


def _task(task: str) -> str:
    if not TASK.fullmatch(task):
        raise UsageError(f"task {task[:80]!r} cannot name a file; letters, digits, '.', '_' and '-' can")
    return task


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
