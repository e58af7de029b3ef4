"""How is JSON from strangers read? As an object of bounded size and depth with finite numbers, or not at all.

`json.loads` alone accepts `NaN`, nesting up to the interpreter's stack and any top-level type, and the first code that
walks the result fails far from the cause.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from quantkit.errors import UsageError
from quantkit.files import read_json

SMALL_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "adapter_config.json")
MAX_DEPTH = 64
MAX_JSON_BYTES = 32 * 1024 * 1024
LINKS_INTO = "QUANTKIT_LINKS_INTO"
"""Environment variable with the folders, separated as in PATH, that links in model and data folders may lead into."""


def read_object(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the JSON object of a file.

    Raises:
        UsageError: it is no readable JSON, no object, nested deeper than 64 levels, or holds NaN or an infinity.
    """
    data = read_json(path, max_bytes=max_bytes)
    if not isinstance(data, dict):
        raise UsageError(f"{path}: the JSON is {_kind(data)}; an object was expected")
    require_plain(data, where=str(path))
    return data


def require_plain(data: Any, *, where: str) -> None:
    """Check that JSON data is nested at most 64 levels deep and that its numbers are finite and below 1e300.

    Raises:
        UsageError: names `where` and what was found.
    """
    level = [data]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                deeper.extend(value.values())
            elif isinstance(value, list):
                deeper.extend(value)
            elif isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{where}: holds the number {value}, which JSON has not")
            elif isinstance(value, int) and abs(value) > 10**300:
                raise UsageError(f"{where}: holds a number of more than 300 digits")
        if not deeper:
            return
        level = deeper
    raise UsageError(f"{where}: nested deeper than {MAX_DEPTH} levels")


def file_inside(folder: Path, name: str, *, where: str) -> Path:
    """Return the real path of the file `name` of a folder.

    A snapshot of the Hugging Face cache links its files to the `blobs` beside it; those count as inside, and so do the
    folders of `LINKS_INTO`.

    Raises:
        UsageError: the name is absolute, climbs out with `..`, or its real path lies outside the folder.
    """
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or PureWindowsPath(name).root
    if not name or absolute or ".." in parts or "\\" in name or not name.isprintable():
        raise UsageError(f"{where}: the file name {name!r} points outside the folder; plain relative names are allowed")
    target = (folder.resolve() / name).resolve()
    if not any(target.is_relative_to(place) for place in _inside(folder)):
        raise UsageError(f"{where}: {name!r} leads to {target}, outside {folder.resolve()}; {_remedy(target)}")
    return target


def refuse_links_out(folder: Path) -> None:
    """Refuse a folder that holds a link to a file or folder outside it, and outside the folders of `LINKS_INTO`.

    Whoever sends a folder can put links of any kind in it, and an unpacked link looks like one's own. So the user says where
    links may lead, once for all verbs; a flag that lets every link pass would be typed for a stranger's folder as well.

    Raises:
        UsageError: names the link and where it leads, or a folder of `LINKS_INTO` that is none.
    """
    allowed = _inside(folder)
    for path in entries(folder):
        if path.is_symlink() and not any(path.resolve().is_relative_to(root) for root in allowed):
            raise UsageError(
                f"{path}: a link to {path.resolve()}, outside the folder; what comes in a folder is read from inside it only."
                f" {_remedy(path.resolve())}"
            )


def entries(folder: Path) -> Iterator[Path]:
    """Yield what a folder holds at all depths; links to folders are followed, after they were yielded, each folder once."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place, name) for name in (*folders, *files))


def check_folder(folder: Path) -> None:
    """Refuse a model's or adapter's folder that other libraries are not to be let at.

    Raises:
        UsageError: a link leads out of it, or one of its small files is no JSON object.
    """
    refuse_links_out(folder)
    for path in (folder / name for name in SMALL_FILES):
        if path.is_file() and not isinstance(data := read_json(path), dict):
            raise UsageError(f"{path}: the JSON is {_kind(data)}; an object was expected")


def _inside(folder: Path) -> list[Path]:
    """Return the folders that count as inside."""
    root = folder.resolve()
    cached = root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--")
    return [root, *([root.parent.parent / "blobs"] if cached else []), *_linked_places()]


def _linked_places() -> list[Path]:
    """Return the folders that the user lets links lead into."""
    places = [Path(item).expanduser() for item in os.environ.get(LINKS_INTO, "").split(os.pathsep) if item]
    for place in places:
        if not place.is_absolute() or not place.is_dir():
            raise UsageError(f"{LINKS_INTO} names {str(place)!r}, which is no absolute path of a folder")
    return [place.resolve() for place in places]


def _remedy(target: Path) -> str:
    return f"Put the file itself there, or, if the link is your own, let links lead there: {LINKS_INTO}={target.parent}"


def _kind(data: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(data), "null")
