"""A record is read as strictly as it is written, and its README names each key."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import UsageError
from quantkit.plan import AdapterPlan, QuantizationPlan
from quantkit.spec import QuantizationSpec
from quantkit_registry.records import (
    RECORD_FILE,
    ArtifactRecord,
    BaseReference,
    MergeRecord,
    Parent,
    read_record,
    write_record,
)
from tests.registry.records_of import record

README = Path(__file__).parents[2] / "registry" / "README.md"


def test_a_record_comes_back_equal(tmp_path: Path) -> None:
    merged = record(
        name="Base-d_SFT_LoRa8_QLORA_w4_headbf16_mergedbf16",
        kind="model",
        merge=MergeRecord(policy="dequantized", dtype="bfloat16"),
        parents=(Parent(name="Base-base", artifact="0" * 64),),
        training={"steps": 3, "losses": [1.0, 0.5]},
    )
    for number, said in enumerate((record(), merged)):
        folder = tmp_path / str(number)
        write_record(folder, said)
        assert read_record(folder) == said
        assert list(json.loads((folder / RECORD_FILE).read_text()))[:4] == [
            "schema_version",
            "quantkit_version",
            "name",
            "kind",
        ]


def broken(path: str, value: Any, *, remove: bool = False) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(record().to_dict()))
    *parents, key = path.split("/")
    place = data
    for parent in parents:
        place = place[parent]
    if remove:
        del place[key]
    else:
        place[key] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema_version", 2, "schema_version is 2; this quantkit reads 1; install a newer quantkit"),
        ("schema_version", "1", "schema_version is '1'"),
        ("schema_version", True, "schema_version is True"),
        ("nmae", "x", "the record has the unknown key 'nmae'. Did you mean 'name'?"),
        ("name", "../x-base", "base of an artifact's name"),
        ("name", 3, "name is 3"),
        ("kind", "models", "kind is 'models'"),
        ("quantization/bits", 4, "quantization has the unknown key 'bits'"),
        ("quantization/weights_bits", "4", "weights_bits is '4'"),
        ("quantization/weights_bits", 7, "quantization.weights_bits is 7"),
        ("quantization", [], "quantization is list, not an object"),
        ("recipe/spec/oops", 1, "quantization has the unknown key 'oops'"),
        ("recipe/adapter/rank", 1, "adapter has the unknown key 'rank'"),
        ("recipe/stage", "before", "stage is 'before'"),
        ("adapter/r", 0, "adapter.r is 0"),
        ("adapter", None, "says kind 'adapter' but names no adapter"),
        ("merge", {"policy": "x", "dtype": "int4"}, "one folder is one kind"),
        ("merge", {"policy": "x"}, "merge is incomplete"),
        ("base/path", "x", "base has the unknown key 'path'"),
        ("base/name_or_path", None, "name_or_path is None"),
        ("parents", {}, "parents is dict, not a list"),
        ("parents", [{"name": 3}], "name is 3"),
        ("training", [1], "training is [1]"),
        ("created_at", 5, "created_at is 5"),
    ],
)
def test_what_is_wrong_with_a_record_is_named(tmp_path: Path, path: str, value: Any, message: str) -> None:
    (tmp_path / RECORD_FILE).write_text(json.dumps(broken(path, value)))
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        read_record(tmp_path)
    assert RECORD_FILE in str(caught.value)


@pytest.mark.parametrize("key", [item.name for item in fields(ArtifactRecord)])
def test_no_key_may_be_missing(key: str) -> None:
    with pytest.raises(UsageError, match=key):
        ArtifactRecord.from_dict(broken(key, None, remove=True))


@pytest.mark.parametrize("value", [None, 0, "x", [], [[]], True, 1e300, {"a": {"b": []}}])
def test_wrong_types_anywhere_end_in_a_usage_error(value: Any) -> None:
    for item in fields(ArtifactRecord):
        data = broken(item.name, value)
        if json.loads(json.dumps(record().to_dict()))[item.name] == value or (item.name in ("merge",) and value is None):
            continue
        try:
            ArtifactRecord.from_dict(data)
        except UsageError:
            continue
        assert isinstance(value, dict | str | list)  # an object or text where any is welcome, or no parents
    with pytest.raises(UsageError, match="not an object"):
        ArtifactRecord.from_dict(["x"])


def test_a_merge_into_no_dense_type_is_refused() -> None:
    with pytest.raises(UsageError, match=r"merge\.dtype is 'nf4'"):
        record(kind="model", merge=MergeRecord(policy="x", dtype="nf4"))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema_version": 1e999}', "[" * 10_000, '{"a": ' * 90 + "1" + "}" * 90])
def test_hostile_record_files_are_one_clear_line(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD_FILE).write_text(text)
    with pytest.raises(UsageError, match=RECORD_FILE) as caught:
        read_record(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="cannot be read"):
        read_record(tmp_path / "nowhere")


def documented(section: str) -> dict[str, str]:
    """Return key → its line of the README's table in this section."""
    text = README.read_text().split(f"### {section}\n")[1].split("\n#")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", text, flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("section", "cls"),
    [
        ("The record", ArtifactRecord),
        ("`quantization`", QuantizationSpec),
        ("`recipe`", QuantizationPlan),
        ("`adapter`", AdapterPlan),
        ("`base`", BaseReference),
        ("`merge`", MergeRecord),
        ("`parents`", Parent),
    ],
)
def test_the_readme_documents_exactly_the_keys_there_are(section: str, cls: type) -> None:
    assert set(documented(section)) == {item.name for item in fields(cls)}
    assert all(len(text) > 8 for text in documented(section).values())


def test_the_readme_lists_the_records_keys_in_the_order_of_the_file() -> None:
    assert list(documented("The record")) == list(record().to_dict())
