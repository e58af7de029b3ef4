"""Can results be written, are there places to load from, and is there room? Folders, caches and the settings that move them."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.doctor.findings import Finding
from quantkit.layout import format_bytes
from quantkit.saving import SPARE_BYTES

LITTLE_BYTES = 10 * SPARE_BYTES
"""Free space below which an artifact of any usual model will not fit."""
SETTINGS = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "QUANTKIT_REGISTRY",
    "QUANTKIT_DISABLE_PLUGINS",
    "QUANTKIT_LINKS_INTO",
)
"""Variables that change where things are looked for or what runs; their values go into a report."""
SECRETS = ("HF_TOKEN",)
"""Variables of which a report says only whether they are set."""
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A folder that is written to or loaded from."""

    name: str
    path: str
    exists: bool
    writable: bool
    free_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {item: getattr(self, item) for item in self.__slots__}


def read_places(registry: Path, environment: Mapping[str, str] | None = None) -> list[Place]:
    """Return registry, hub cache and temporary folder; nothing is left behind in them, and none is created."""
    said = os.environ if environment is None else environment
    home = Path(said.get("HF_HOME") or Path(said.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface")
    hub = Path(said.get("HF_HUB_CACHE") or home / "hub")
    places = {"registry": registry, "hub cache": hub, "temporary files": Path(tempfile.gettempdir())}
    return [_place(name, path.expanduser()) for name, path in places.items()]


def settings(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that are set, of secrets only that they are."""
    said = os.environ if environment is None else environment
    return {name: said[name] for name in SETTINGS if name in said} | {name: "set" for name in SECRETS if said.get(name)}


def judge_places(places: list[Place], environment: Mapping[str, str] | None = None) -> list[Finding]:
    """Return folders that cannot be written or have no room, and an offline setting with nothing to load."""
    said = os.environ if environment is None else environment
    offline = [name for name in OFFLINE if said.get(name, "").strip().lower() in ("1", "true", "yes", "on")]
    found = []
    for place in places:
        if place.name == "hub cache" and offline:
            if not place.exists:
                found.append(
                    Finding(
                        severity="beware",
                        subject="hub cache",
                        what=f"{offline[0]} is set and {place.path} does not exist: no hub id can be loaded",
                        advice="name folders, or fetch the models once without it",
                    )
                )
        elif not place.writable:
            found.append(
                Finding(
                    severity="beware" if place.name == "hub cache" else "breaks",
                    subject=place.name,
                    what=f"{place.path} cannot be written to",
                    advice=ADVICE[place.name],
                )
            )
        elif place.free_bytes < LITTLE_BYTES:
            found.append(
                Finding(
                    severity="breaks" if place.free_bytes < SPARE_BYTES else "beware",
                    subject=place.name,
                    what=f"{format_bytes(place.free_bytes)} are free at {place.path}",
                    advice=f"free some space, or {ADVICE[place.name]}",
                )
            )
    return found


ADVICE = {
    "registry": "choose another folder with QUANTKIT_REGISTRY or --output-dir",
    "hub cache": "choose another folder with HF_HOME",
    "temporary files": "choose another folder with TMPDIR",
}


def _place(name: str, path: Path) -> Place:
    existing = next((item for item in (path.absolute(), *path.absolute().parents) if item.exists()), Path("/"))
    return Place(
        name=name,
        path=str(path),
        exists=path.is_dir(),
        writable=existing.is_dir() and _can_write(existing),
        free_bytes=shutil.disk_usage(existing).free,
    )


def _can_write(folder: Path) -> bool:
    """Try it: permission bits say yes on file systems that are mounted read-only."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
