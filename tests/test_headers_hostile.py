"""Is whatever somebody else put into a model's files read safely, or refused in one clear line?"""

import json
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import QuantkitError, UsageError
from quantkit.headers import read_header, read_object, read_stored_weights, read_tensor_index
from quantkit.headers.plain import file_inside
from tests.registry import samples


def test_a_gguf_file_tells_its_type(tmp_path: Path) -> None:
    weights = read_stored_weights(samples.gguf(tmp_path / "m.gguf"))
    assert (weights.kind, weights.weights_dtype, weights.weights_bits) == ("gguf", "q4_k_m", 4)
    assert read_stored_weights(tmp_path).kind == "gguf"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGML" + bytes(40), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40), "claims 1099511627776 metadata entries"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60), "damaged or cut short"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 10, 2**63), "damaged or cut short"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 99), "damaged or cut short"),
    ],
)
def test_damaged_gguf_headers_are_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_stored_weights(path)


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"\xff\xfe{}", b"", "not valid JSON"),
        (b"[1]", b"", "no JSON object"),
        (b"[" * 100_000, b"", "not valid JSON"),
        ({"a": {**GOOD, "dtype": "F33"}}, bytes(8), "unknown dtype 'F33'"),
        ({"a": {**GOOD, "dtype": ["F32"]}}, bytes(8), "unknown dtype"),
        ({"a": {**GOOD, "shape": [-2]}}, bytes(8), "is no list of sizes"),
        ({"a": {**GOOD, "shape": [True]}}, bytes(8), "is no list of sizes"),
        ({"a": {**GOOD, "shape": "2"}}, bytes(8), "is no list of sizes"),
        ({"a": {**GOOD, "shape": [2**60]}}, bytes(8), "is no list of sizes"),
        ({"a": {**GOOD, "shape": [3]}}, bytes(8), "takes 12 bytes, data_offsets give 8"),
        ({"a": {**GOOD, "data_offsets": [8, 0]}}, bytes(8), "lie outside the file"),
        ({"a": {**GOOD, "data_offsets": [0, 16]}}, bytes(8), "lie outside the file"),
        ({"a": {**GOOD, "data_offsets": [0]}}, bytes(8), "are no pair of positions"),
        ({"a": {"dtype": "F32"}}, bytes(8), "exactly dtype, shape and data_offsets"),
        ({"a": GOOD, "b": GOOD}, bytes(8), "overlaps the one before it"),
        ({"a": {**GOOD, "data_offsets": [4, 12]}}, bytes(12), "leaves a gap before it"),
        ({"a": GOOD}, bytes(12), "4 bytes follow the last tensor"),
        ({"__metadata__": {"a": 1}}, b"", "must map strings to strings"),
        (b'{"a": 1, "a": 2}', b"", "a key stands twice: 'a'"),
        (b'{"__metadata__": {"a": NaN}}', b"", "the number nan"),
    ],
)
def test_hostile_safetensors_headers_are_refused(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    with pytest.raises(UsageError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_header_lengths_that_cannot_be_are_refused_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for content in (b"", b"\x01", struct.pack("<Q", 2**63) + b"{}"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="not a safetensors file, or cut short"):
            read_header(path)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", 200_000_000))
        stream.truncate(300_000_000)  # sparse
    with pytest.raises(UsageError, match="at most 100000000 are read"):
        read_header(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_header(tmp_path / "missing.safetensors")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 255))
def test_no_damage_to_a_header_ends_in_anything_but_a_usage_error(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes, position: int, value: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    samples.write_tensors(path, {"a": ("F32", (2, 3)), "b": ("BF16", (4,))}, {"k": "v"})
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(bytes(content) + tail)
    with suppress(UsageError):
        read_header(path)


def sharded(folder: Path, weight_map: dict[str, str]) -> Path:
    for number, name in enumerate(("embed_tokens", "layers.0.mlp.up_proj"), start=1):
        samples.write_tensors(folder / f"model-{number}.safetensors", {f"model.{name}.weight": ("BF16", (64, 64))})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    return folder


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    good = {"model.embed_tokens.weight": "model-1.safetensors", "model.layers.0.mlp.up_proj.weight": "model-2.safetensors"}
    index = read_tensor_index(sharded(tmp_path, good))
    assert set(index.tensors) == set(good)
    assert read_stored_weights(tmp_path).weights_dtype == "bfloat16"
    sharded(tmp_path, good | {"model.embed_tokens.weight": "model-2.safetensors"})
    with pytest.raises(UsageError, match=r"says that model\.embed_tokens\.weight stands in model-2"):
        read_tensor_index(tmp_path)
    sharded(tmp_path, {"a": 3})  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="weight_map must map tensor names to file names"):
        read_tensor_index(tmp_path)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "C:\\x", "a\\..\\..\\x", "..", "", "a\nb", "x/../../y"])
def test_an_index_cannot_name_files_outside_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="points outside the folder"):
        file_inside(tmp_path, name, where="index")
    with pytest.raises(UsageError, match="points outside the folder"):
        read_tensor_index(sharded(tmp_path, {"a": name}))


def test_links_lead_outside_only_in_the_hub_cache(tmp_path: Path) -> None:
    outside = samples.write_tensors(tmp_path / "models--o--m" / "blobs" / "abc", {"a": ("F32", (1,))})
    plain, snapshot = tmp_path / "plain", tmp_path / "models--o--m" / "snapshots" / "f00"
    for folder in (plain, snapshot):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").symlink_to(outside)
    with pytest.raises(UsageError, match=r"leads to .*, outside"):
        read_tensor_index(plain)
    assert "a" in read_tensor_index(snapshot).tensors


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"holds neither model\.safetensors nor"):
        read_stored_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UsageError, match=r"the weights are pickled \(pytorch_model\.bin\)"):
        read_stored_weights(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "the JSON is an array; an object was expected"),
        ("null", "the JSON is null"),
        ('{"a": NaN}', "the number nan"),
        ('{"a": 1e999}', "the number inf"),
        ('{"a": 1' + "0" * 400 + "}", "more than 300 digits"),
        ('{"a": 1' + "0" * 5000 + "}", "not valid JSON"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "nested deeper than 64 levels"),
        ('{"a": ' + "[" * 100_000, "not valid JSON"),
        ("{", "not valid JSON"),
    ],
)
def test_hostile_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_object(path)


@pytest.mark.parametrize("value", [None, 0, -1, True, "x", [], {}, [[1]], {"a": {}}, 2.5, "x" * 1000])
def test_a_quantization_config_with_wrong_types_never_crashes(tmp_path: Path, value: object) -> None:
    keys = ("bits", "group_size", "sym", "config_groups", "quant_type", "quant_config", "weights", "kv_cache_scheme", "version")
    methods = ("gptq", "awq", "hqq", "torchao", "compressed-tensors", "quanto", "aqlm", "higgs", "fp8", "nonsense", value)
    for number, method in enumerate(methods):
        folder = samples.write_model(tmp_path / str(number), {".weight": ("BF16", (8, 8))}, {"quant_method": method})
        config = {"quant_method": method} | dict.fromkeys(keys, value)
        (folder / "config.json").write_text(json.dumps({"quantization_config": config, "text_config": value}))
        with suppress(QuantkitError):
            read_stored_weights(folder)


def test_a_link_that_leads_out_of_a_folder_is_refused_and_one_within_is_not(tmp_path: Path) -> None:
    from quantkit.headers import refuse_links_out

    folder = tmp_path / "model"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / "secret.json").write_text("{}")
    (folder / "here.json").write_text("{}")
    (folder / "inner" / "same.json").symlink_to(folder / "here.json")
    refuse_links_out(folder)
    for target in (tmp_path / "secret.json", tmp_path):
        link = folder / "inner" / "link"
        link.symlink_to(target)
        with pytest.raises(UsageError, match=rf"{link}: a link to {target}, outside the folder; .* Put the file itself there"):
            refuse_links_out(folder)
        link.unlink()


def test_links_of_the_hub_cache_into_its_own_blobs_count_as_inside(tmp_path: Path) -> None:
    from quantkit.headers import refuse_links_out

    repository = tmp_path / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "abc").write_text("{}")
    snapshot = repository / "snapshots" / "123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to(repository / "blobs" / "abc")
    refuse_links_out(snapshot)


def test_links_may_lead_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantkit.data.sources import split_files
    from quantkit.headers import refuse_links_out
    from quantkit.headers.plain import LINKS_INTO

    shared, folder = tmp_path / "shared", tmp_path / "mine"
    folder.mkdir()
    shard = samples.write_tensors(shared / "shard.safetensors", {"a": ("F32", (1,))})
    (shared / "more").mkdir()
    for name in ("a.jsonl", "more/b.jsonl"):
        (shared / name).write_text("{}")
    (tmp_path / "secret.jsonl").write_text("{}")
    for name, target in (("model.safetensors", shard), ("a.jsonl", shared / "a.jsonl"), ("more", shared / "more")):
        (folder / name).symlink_to(target)
    (shared / "more" / "loop").symlink_to(folder)
    with pytest.raises(UsageError, match=f"if the link is your own, let links lead there: {LINKS_INTO}={shared}"):
        refuse_links_out(folder)
    with pytest.raises(UsageError, match=f"leads to .*, outside .*; Put the file .*: {LINKS_INTO}={shared}"):
        read_tensor_index(folder)
    monkeypatch.setenv(LINKS_INTO, f"{tmp_path / 'mine'}{os.pathsep}{shared}")
    assert "a" in read_tensor_index(folder).tensors
    assert split_files(folder)["train"] == [folder / "a.jsonl", folder / "more" / "b.jsonl"]
    (shared / "more" / "c.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(UsageError, match=rf"more/c.jsonl: a link to {tmp_path}/secret.jsonl"):
        refuse_links_out(folder)


@pytest.mark.parametrize("place", ["shared", "/no/such/folder"])
def test_places_for_links_that_are_none_are_named(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantkit.headers import refuse_links_out
    from quantkit.headers.plain import LINKS_INTO

    monkeypatch.setenv(LINKS_INTO, place)
    with pytest.raises(UsageError, match=f"QUANTKIT_LINKS_INTO names '{place}', which is no absolute path of a folder"):
        refuse_links_out(tmp_path)
