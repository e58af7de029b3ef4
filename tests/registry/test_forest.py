"""`quantkit registry tree` shows what was made of each base."""

import json
from pathlib import Path

import pytest

from quantkit import console
from quantkit.files import artifact_hash
from quantkit_registry.forest import forest
from quantkit_registry.records import BaseReference, MergeRecord, Parent
from quantkit_registry.store import Registry
from quantkit_tools.cli import main
from tests.registry import samples
from tests.registry.records_of import commit_adapter, commit_model

ADAPTER = "Base-d_SFT_LoRa8_QLORA_w4_headbf16"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    adapter = commit_adapter(tmp_path)
    parents = (Parent(name=ADAPTER, artifact=artifact_hash(adapter)),)
    merge = MergeRecord(policy="dequantized", dtype="bfloat16")
    gate = {"gate": {"outcome": "failed", "reasons": ["30% of the gain is lost"]}}
    commit_model(tmp_path, parents=parents, merge=merge, verification=gate)
    commit_model(tmp_path, dataset="e", parents=(Parent(name="Gone-base_RTN_w4_headbf16", artifact="0" * 64),))
    other = BaseReference(name_or_path="org/Base", fingerprint="sha256:" + "1" * 64)
    commit_adapter(tmp_path, name="Base-f_SFT_LoRa8_QLORA_w4_headbf16", base=other)
    samples.adapter(tmp_path / "4bits_r8", base="org/Base")
    samples.adapter(tmp_path / "4bits_r4", base="org/Else", rank=4)
    return tmp_path


def test_adapters_stand_under_their_base_and_merges_under_their_adapter(root: Path) -> None:
    trees = {tree.what: tree for tree in forest(Registry(root))}
    assert set(trees) == {"base, no fingerprint", "base, sha256:1111111111111111", "base, named by an adapter of others"}
    here = trees["base, no fingerprint"]
    assert [branch.name for branch in here.made] == [ADAPTER, "Base-e_SFT_LoRa8_QLORA_w4_headbf16_mergedbf16", "4bits_r8"]
    adapter = here.made[0]
    assert (adapter.kind, adapter.what) == ("adapter", "LoRa8 on QLORA weights, kept as adapter")
    merged = adapter.made[0]
    assert merged.what == "LoRa8 on QLORA weights, merged (dequantized), stored as bfloat16"
    assert merged.mark == "30% of the gain is lost"
    assert "its recipe not recorded (quantkit registry adopt)" in here.made[2].what
    assert trees["base, named by an adapter of others"].made[0].name == "4bits_r4"


def test_the_tree_is_printed_and_given_as_json(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "tree", "--root", str(root)]) == 0
    text = capsys.readouterr().out
    assert f"    └ {ADAPTER}_mergedbf16: LoRa8 on QLORA weights, merged (dequantized), stored as bfloat16" in text
    assert "MARKED: 30% of the gain is lost" in text
    try:
        assert main(["registry", "tree", "--root", str(root), "--json"]) == 0
    finally:
        console.use_stdout()
    bases = json.loads(capsys.readouterr().out)["bases"]
    assert {base["kind"] for base in bases} == {"base"}


def test_an_unreadable_adapter_and_an_empty_root_are_shown_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "tree", "--root", str(tmp_path)]) == 0
    assert "(none)" in capsys.readouterr().out
    (samples.adapter(tmp_path / "cut") / "adapter_model.safetensors").write_bytes(b"x")
    tree = forest(Registry(tmp_path))[0]
    assert tree.name == "no base recorded"
    assert tree.made[0].what.startswith("unreadable: ")
