"""Which runs does a file describe? JSON, TOML or YAML; settings of one run, or an object of named runs.

The two are told apart by structure: a file whose every top-level value is an object, under keys that are no settings,
holds named runs. Duplicate keys are errors in all three formats: the parsers' habit of keeping the last one makes
a run differ from what its author reads.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.aliases import RENAMED, TRANSLATED, canonical
from quantkit.config import SETTINGS
from quantkit.errors import UsageError, did_you_mean
from quantkit.files import read_text

SUFFIXES = (".json", ".toml", ".yaml", ".yml")
MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 64
"""Levels of nesting in a YAML file."""


def choose_run(path: str | Path, runs: Mapping[str, Any], name: str | None) -> str:
    """Return the run to use: the one named, or the only one.

    Raises:
        UsageError: no such run, or several and none is named; the text lists them.
    """
    listed = ", ".join(list(runs)[:12]) + (f", … ({len(runs)} runs)" if len(runs) > 12 else "")
    if name is None:
        if len(runs) > 1:
            raise UsageError(f"{path}: holds {len(runs)} runs; choose one with --run. Known: {listed}.")
        return next(iter(runs))
    if name not in runs:
        raise UsageError(f"{path}: no run is called {name!r}.{did_you_mean(name, runs)} Known: {listed}.")
    return name


def place(path: str | Path, name: str, runs: Mapping[str, Any]) -> str:
    """Return how errors name a run: `runs.json: run 'fast'`, or the file alone where it holds one unnamed run."""
    return f"{path}" if len(runs) == 1 and name == Path(path).stem else f"{path}: run {name!r}"


def read_run_values(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return run name → its settings as they stand in the file, not yet checked; a file of one run calls it by its stem.

    Raises:
        UsageError: names file and key of whatever cannot be read as settings.
    """
    path = Path(path)
    data = read_data(path, "an object of settings, or of named runs,")
    objects = [key for key, value in data.items() if isinstance(value, dict) and not _is_setting(key)]
    if not objects:
        return {path.stem: data}
    if len(objects) < len(data):
        other = next(key for key in data if key not in objects)
        raise UsageError(
            f"{path}: {other!r} is {_kind(data[other])} but {objects[0]!r} is an object;"
            " a file holds the settings of one run or named runs, not both"
        )
    return data


def read_data(path: Path, wanted: str) -> dict[str, Any]:
    """Return the one object that a JSON, TOML or YAML file holds; `wanted` says for errors what it should be."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: run files end in {', '.join(SUFFIXES)}")
    data = _parse(path, read_text(path, max_bytes=MAX_BYTES))
    if not isinstance(data, dict) or not data:
        raise UsageError(f"{path}: holds {_kind(data)}; {wanted} is wanted")
    for key in data:
        if not isinstance(key, str):
            raise UsageError(f"{path}: the key {key!r} is no text")
    return data


def _is_setting(key: str) -> bool:
    name = canonical(key)
    return name in SETTINGS or name in TRANSLATED or name in RENAMED.values()


def _parse(path: Path, text: str) -> Any:
    try:
        if path.suffix.lower() == ".json":
            return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        if path.suffix.lower() == ".toml":
            import tomllib

            return tomllib.loads(text)
        return _parse_yaml(text)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid {path.suffix[1:].upper()}: {error}") from None


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    data: dict[Any, Any] = {}
    for key, value in pairs:
        if key in data:
            raise UsageError(f"the key {key!r} stands twice in one object")
        data[key] = value
    return data


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is no JSON number")


def _parse_yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """The safe loader, with duplicate keys, aliases (their expansion can be huge) and deep nesting refused."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise UsageError("YAML aliases (*name) are not read; write the value out")
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        return _unique(
            [(loader.construct_object(key, deep=True), loader.construct_object(value, deep=True)) for key, value in node.value]
        )

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except TypeError as error:
        raise ValueError(str(error)) from None


def _kind(data: Any) -> str:
    if isinstance(data, dict):
        return "an object" if data else "an empty object"
    return "nothing" if data is None else f"a {type(data).__name__}"
