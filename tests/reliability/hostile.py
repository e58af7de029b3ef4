"""Inputs that somebody else wrote and that must be refused: folders, records, headers, rows, templates, settings, names.

Each case writes its files into a folder of its own and says which command reads them and what the one line must name.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.ranges import NUMBERS, RANGES
from tests.registry.records_of import commit_adapter, record
from tests.registry.samples import adapter, dense, write_tensors


@dataclass(frozen=True)
class Case:
    """One hostile input."""

    what: str
    build: Callable[[Path], list[str]]
    """Writes into an empty folder and returns the command line."""
    says: tuple[str, ...]
    """What the one line names: a file and a field, where there are such."""


BROKEN_JSON: dict[str, bytes] = {
    "empty": b"",
    "cut short": b'{"a": {"b": [1, 2',
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a list": b"[1, 2]",
    "a text": b'"config"',
    "null": b"null",
    "nested deeply": b'{"a":' * 100 + b"1" + b"}" * 100,
    "nested without end": b"[" * 200_000,
    "NaN": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "a huge number": b'{"a": 1' + b"0" * 400 + b"}",
    "a number of 5000 digits": b'{"a": 1' + b"0" * 5000 + b"}",
    "something after it": b'{"a": 1} {"b": 2}',
    "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94.",
    "zeros": bytes(64),
}


def model_of(source: Path, folder: Path, **files: bytes | str) -> Path:
    """A copy of a model folder in which some files (`config_json=…`) say something else."""
    folder.mkdir(parents=True)
    changed = {name.replace("__", "-").replace("_json", ".json").replace("_jinja", ".jinja"): files[name] for name in files}
    for path in source.iterdir():
        if path.name not in changed:
            try:
                os.link(path, folder / path.name)
            except OSError:
                shutil.copy(path, folder / path.name)
    for name, content in changed.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def json_files() -> Iterator[Case]:
    """Every JSON file of a folder, broken in every way."""

    def folder_of(name: str, root: Path) -> Path:
        if name.startswith("adapter"):
            return adapter(root / "a")
        if name == "model.safetensors.index.json":
            made = dense(root / "m")
            (made / "model.safetensors").rename(made / "model-00001-of-00001.safetensors")
            return made
        return dense(root / "m")

    names = ("config.json", "adapter_config.json", "quantization_metadata.json", "model.safetensors.index.json")
    for name in names:
        for how, content in BROKEN_JSON.items():

            def build(root: Path, name: str = name, content: bytes = content) -> list[str]:
                folder = folder_of(name, root)
                (folder / name).write_bytes(content)
                return ["registry", "detect", str(folder)]

            yield Case(f"{name} is {how}", build, (name,))


def _header(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes}


def headers() -> Iterator[Case]:
    """Headers of safetensors files that claim what is not so."""
    faults: dict[str, tuple[bytes | dict[str, Any], str]] = {
        "no file at all": (b"", "0 bytes"),
        "length beyond the file": (struct.pack("<Q", 1 << 62) + b"{}", "cut short"),
        "length of zero": (struct.pack("<Q", 0) + b"{}", "cut short"),
        "an unknown dtype": (_header(dtype="F128"), "unknown dtype 'F128'"),
        "a dtype that is a list": (_header(dtype=["F32"]), "unknown dtype"),
        "a negative size": (_header(shape=[-2, -2]), "shape [-2, -2]"),
        "a size that is a text": (_header(shape=["2", 2]), "no list of sizes"),
        "a size of 2^60": (_header(shape=[1 << 60, 1]), "no list of sizes"),
        "17 dimensions": (_header(shape=[1] * 17), "no list of sizes"),
        "sizes whose product overflows": (_header(shape=[1 << 40, 1 << 40]), "takes"),
        "offsets outside": (_header(data_offsets=[0, 999]), "lie outside the file"),
        "offsets backwards": (_header(data_offsets=[16, 0]), "lie outside the file"),
        "negative offsets": (_header(data_offsets=[-16, 0]), "no pair of positions"),
        "three offsets": (_header(data_offsets=[0, 8, 16]), "no pair of positions"),
        "offsets that are true": (_header(data_offsets=[False, True]), "no pair of positions"),
        "a further key": (_header(code="import os"), "exactly dtype, shape and data_offsets"),
        "a tensor that is a number": ({"a": 5}, "exactly dtype, shape and data_offsets"),
        "overlapping tensors": (
            _header() | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}},
            "overlaps the one before it",
        ),
        "a gap": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}, "leaves a gap"),
        "metadata that is a list": ({"__metadata__": []} | _header(), ""),
        "metadata of numbers": ({"__metadata__": {"a": 1}} | _header(), "__metadata__"),
        "one name twice": (
            b'{"a":{"dtype":"U8","shape":[16],"data_offsets":[0,16]},"a":{"dtype":"U8","shape":[16],"data_offsets":[0,16]}}',
            "a key stands twice: 'a'",
        ),
    }
    for file in ("model.safetensors", "adapter_model.safetensors"):
        for how, (header, says) in faults.items():
            if not says:
                continue

            def build(root: Path, file: str = file, header: bytes | dict[str, Any] = header) -> list[str]:
                folder = dense(root / "m") if file.startswith("model") else adapter(root / "a")
                text = header if isinstance(header, bytes) else json.dumps(header).encode()
                whole = text if not text.startswith(b"{") else struct.pack("<Q", len(text)) + text + bytes(16)
                (folder / file).write_bytes(whole)
                return ["registry", "detect", str(folder)]

            yield Case(f"{file} with {how}", build, (file, says))
        for how, content in BROKEN_JSON.items():

            def build_json(root: Path, file: str = file, content: bytes = content) -> list[str]:
                folder = dense(root / "m") if file.startswith("model") else adapter(root / "a")
                (folder / file).write_bytes(struct.pack("<Q", len(content)) + content)
                return ["registry", "detect", str(folder)]

            yield Case(f"{file} whose header is {how}", build_json, (file,))


def shards() -> Iterator[Case]:
    """Indexes that lead elsewhere."""
    for name in (
        "../secret.safetensors",
        "/etc/passwd",
        "C:\\x.safetensors",
        "..\\x",
        "a\x00b",
        "\\\\host\\x",
        "",
        "a/../../b",
    ):

        def build(root: Path, name: str = name) -> list[str]:
            write_tensors(root / "secret.safetensors", {"a": ("F32", (2,))})
            folder = dense(root / "m")
            (folder / "model.safetensors").unlink()
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
            return ["registry", "detect", str(folder)]

        yield Case(f"an index that leads to {name!r}", build, ("model.safetensors.index.json", "points outside the folder"))
    for what, weight_map in {"numbers": {"a": 1}, "nothing": {}, "a list": ["a"]}.items():

        def build_map(root: Path, weight_map: Any = weight_map) -> list[str]:
            folder = dense(root / "m")
            (folder / "model.safetensors").unlink()
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
            return ["registry", "detect", str(folder)]

        yield Case(f"an index of {what}", build_map, ("model.safetensors.index.json", "weight_map"))


WRONG: tuple[Any, ...] = (None, [], {"x": 1}, "\x1b[2Jtext", -1, True)


def records() -> Iterator[Case]:
    """Records in which one key is missing, or has a value of another type."""
    said = record().to_dict()
    free = {"training", "data", "memory", "environment", "verification"}
    for key, right in said.items():
        yield _record_case(f"a record without {key}", {name: value for name, value in said.items() if name != key}, key)
        for wrong in WRONG[1:5]:
            alike = isinstance(wrong, type(right)) and not isinstance(wrong, bool)
            if alike and (key in free or key in ("parents", "created_at", "quantkit_version")):
                continue
            yield _record_case(f"a record whose {key} is {wrong!r}", said | {key: wrong}, key)
    for part in ("quantization", "recipe", "adapter", "base"):
        for key in said[part]:
            if key in ("extras", "options", "notes", "tags", "target_modules", "modules_to_save"):
                continue
            wrong = {part: said[part] | {key: {"x": 1}}}
            named = part if key in ("spec", "adapter") else key
            yield _record_case(f"a record whose {part}.{key} is an object", said | wrong, named)
        yield _record_case(f"a record whose {part} has a further key", said | {part: said[part] | {"evil": 1}}, "evil")


def _record_case(what: str, data: dict[str, Any], key: str) -> Case:
    def build(root: Path) -> list[str]:
        folder = commit_adapter(root)
        (folder / "quantization_metadata.json").write_text(json.dumps(data))
        return ["registry", "detect", str(folder)]

    return Case(what, build, ("quantization_metadata.json", key))


def run_files() -> Iterator[Case]:
    """Files of settings: broken in every way, and every setting out of its range."""
    for suffix in ("json", "yaml", "toml"):
        for how, content in BROKEN_JSON.items():
            if suffix != "json" and how in ("NaN", "infinity", "a huge number", "nested deeply", "a number of 5000 digits"):
                continue
            yield _run_file(f"a {suffix} file that is {how}", f"run.{suffix}", content)
    bombs = {
        "python.yaml": b"model_name_or_path: !!python/object/apply:os.system ['touch canary']",
        "laughs.yaml": b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n",
        "twice.json": b'{"seed": 1, "seed": 2}',
        "twice.yaml": b"seed: 1\nseed: 2\n",
        "merge.yaml": b"a: {x: 1}\nb:\n  <<: {seed: 1}\n  seed: 2\n",
        "run.pkl": b"\x80\x04.",
    }
    for name, content in bombs.items():
        yield _run_file(f"the settings {name}", name, content)
    for name in sorted(NUMBERS):
        for wrong in ("many", {"x": 1}, [1, 2], -7):
            if _is_refused(name, wrong):
                content = json.dumps({"model_name_or_path": "./nowhere", "dataset_name": "openmath", name: wrong})
                yield _run_file(f"{name} is {wrong!r}", "run.json", content.encode(), name)


def _is_refused(name: str, value: Any) -> bool:
    holds, _ = RANGES[name]
    return not isinstance(value, int) or not holds(value)


def _run_file(what: str, name: str, content: bytes, says: str = "") -> Case:
    def build(root: Path) -> list[str]:
        (root / name).write_bytes(content)
        return ["train", "--config", str(root / name), "--dry-run"]

    return Case(what, build, (name, says))
