"""The folders are the truth: listing, finding, reserving, results, lineage and verification read them."""

import json
import multiprocessing
import re
from pathlib import Path

import pytest

from quantkit.errors import UsageError
from quantkit.files import MANIFEST
from quantkit_registry.fingerprints import fingerprint_base
from quantkit_registry.lineage import lineage
from quantkit_registry.records import BaseReference, Parent
from quantkit_registry.store import Artifact, Registry, default_root, root_of
from quantkit_registry.verify import Check, verify
from tests.registry import samples
from tests.registry.records_of import QLORA, commit_adapter, commit_model

ADAPTER = "Base-d_SFT_LoRa8_QLORA_w4_headbf16"
MODEL = f"{ADAPTER}_mergedbf16"


def test_the_root_is_the_variables_or_artifacts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("QUANTKIT_REGISTRY", raising=False)
    assert default_root() == Path("artifacts")
    monkeypatch.setenv("QUANTKIT_REGISTRY", "~/here")
    assert default_root() == Path.home() / "here" == Registry("~/here").root
    monkeypatch.setenv("QUANTKIT_REGISTRY", str(tmp_path / "here"))
    registry = Registry()
    assert registry.root == tmp_path / "here"
    assert registry.entries() == []
    (tmp_path / "here").write_text("x")
    with pytest.raises(UsageError, match="is a file; a registry is a folder"):
        Registry()


def test_runs_write_where_the_registry_is_unless_they_name_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUANTKIT_REGISTRY", raising=False)
    assert root_of("artifacts") == Path("artifacts")
    monkeypatch.setenv("QUANTKIT_REGISTRY", "elsewhere")
    assert root_of("artifacts") == Path("elsewhere")
    assert root_of("~/mine") == Path.home() / "mine"


def test_entries_are_told_apart_by_origin(tmp_path: Path) -> None:
    commit_adapter(tmp_path)
    commit_model(tmp_path)
    samples.dense(tmp_path / "Foreign")
    samples.dense(tmp_path / "Study")
    (tmp_path / "Study" / "training_metadata.json").write_text('{"quantization": {"method": "NoQuant"}}')
    (commit_model(tmp_path, dataset="unfinished") / MANIFEST).unlink()
    damaged = commit_model(tmp_path, dataset="damaged")
    (damaged / "quantization_metadata.json").write_text("{")
    samples.dense(tmp_path / ".writing-abc")
    (tmp_path / "results").mkdir()
    (tmp_path / "notes").mkdir()
    registry = Registry(tmp_path)
    origins = {entry.name.split("_")[0]: entry.origin for entry in registry.entries()}
    assert origins == {
        "Base-d": "quantkit",
        "Base-damaged": "broken",
        "Base-unfinished": "broken",
        "Foreign": "foreign",
        "Study": "study",
    }
    assert [entry.name for entry in registry.artifacts()] == [ADAPTER, MODEL]
    faults = [entry.fault for entry in registry.entries() if entry.origin == "broken"]
    assert "not valid JSON" in faults[0]
    assert "never finished" in faults[1]
    assert all(entry.size_bytes > 0 for entry in registry.entries() if entry.origin != "broken")


def test_an_artifact_is_found_by_name_path_and_hash(tmp_path: Path) -> None:
    path = commit_adapter(tmp_path)
    commit_model(tmp_path)
    registry = Registry(tmp_path)
    one = registry.find(ADAPTER)
    assert one.hash is not None
    for wanted in (path, str(path), one.hash, one.hash[:8].upper(), f"sha256:{one.hash}"):
        assert registry.find(wanted) == one
    with pytest.raises(UsageError, match=re.escape(f"Did you mean '{ADAPTER}'?")):
        registry.find(ADAPTER.replace("QLORA", "QLORRA"))
    with pytest.raises(UsageError, match=r"is called '\.\./gone'"):
        registry.find("../gone")
    (tmp_path / "x" / "y").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds no model and no adapter"):
        registry.find(tmp_path / "x")


def test_a_hash_prefix_that_fits_two_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path)
    two = [
        Artifact(path=tmp_path / name, origin="quantkit", hash="abcd" + digit * 60) for name, digit in (("A", "0"), ("B", "1"))
    ]
    monkeypatch.setattr(registry, "entries", lambda: two)
    with pytest.raises(UsageError, match="begins the hash of A, B; give more digits"):
        registry.find("abcd")
    assert registry.find("abcd0").name == "A"


HASH = "0123456789abcdef" * 4


def test_results_are_kept_by_hash_and_task(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    assert registry.results(HASH) == {}
    path = registry.add_result(HASH, "arith-heldout", {"score": 1})
    assert path == tmp_path / "results" / HASH / "arith-heldout.json"
    registry.add_result(HASH, "arith-heldout", {"score": 2})
    registry.add_result(HASH, "openmath", {"score": 3})
    (path.parent / ".openmath.json.x.tmp").write_text("{")
    assert registry.results(HASH) == {"arith-heldout": {"score": 2}, "openmath": {"score": 3}}
    for bad in ("../x", "", "a/b", "..", ".hidden", "x" * 100, "a\n"):
        with pytest.raises(UsageError, match="cannot name a file"):
            registry.add_result(HASH, bad, {})
    for bad in ("../..", HASH.upper(), HASH[:-1], HASH + "\n"):
        with pytest.raises(UsageError, match="is no artifact hash"):
            registry.add_result(bad, "x", {})
    path.write_text("{")
    with pytest.raises(UsageError, match="not valid JSON"):
        registry.results(HASH)


def add_many(root: str, worker: int) -> None:
    for number in range(25):
        Registry(root).add_result(HASH, f"task-{worker}-{number}", {"worker": worker, "number": number})


def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add_many, args=(str(tmp_path), worker)) for worker in range(8)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    results = Registry(tmp_path).results(HASH)
    assert len(results) == 200
    assert results["task-3-7"] == {"worker": 3, "number": 7}


def test_lineage_goes_back_to_the_base(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    commit_adapter(tmp_path)
    parent = registry.find(ADAPTER)
    commit_model(tmp_path, parents=(Parent(name=ADAPTER, artifact=parent.hash), Parent(name="Gone-base", artifact="f" * 64)))
    tree = lineage(registry, registry.find(MODEL))
    assert [(node.name, node.found) for node in tree.origins] == [(ADAPTER, True), ("Gone-base", False)]
    assert tree.origins[0].what == "LoRa8 on QLORA weights, kept as adapter"
    assert tree.origins[0].origins[0].name == "org/Base"
    assert json.loads(json.dumps(tree.to_dict()))["name"] == MODEL
    assert [line.index(name) for line, name in zip(tree.lines(), [MODEL, ADAPTER, "org/Base", "Gone"], strict=True)] == [
        0,
        4,
        6,
        4,
    ]


def test_a_record_that_names_itself_as_parent_ends(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    commit_adapter(tmp_path, parents=(Parent(name=ADAPTER),))
    assert len(lineage(registry, registry.find(ADAPTER)).lines()) <= 3


def outcomes(registry: Registry, name: str) -> dict[str, Check]:
    return {check.what: check for check in verify(registry, registry.find(name), claims={"dense": "NoQuant"})}


def test_verification_passes_for_what_was_committed(tmp_path: Path) -> None:
    base = samples.dense(tmp_path / "elsewhere" / "Base")
    root = tmp_path / "root"
    reference = BaseReference(name_or_path=str(base), fingerprint=fingerprint_base(base))
    commit_adapter(root, base=reference)
    registry = Registry(root)
    commit_model(root, base=reference, parents=(Parent(name=ADAPTER, artifact=registry.find(ADAPTER).hash),))
    for name in (ADAPTER, MODEL):
        found = outcomes(registry, name)
        assert {check.outcome for check in found.values()} == {"ok"}, found
    assert set(outcomes(registry, MODEL)) == {"files", "weights", "name", "base", "parent"}


def test_verification_says_what_it_could_not_check(tmp_path: Path) -> None:
    commit_adapter(tmp_path, parents=(Parent(name="Gone-base"),))
    found = outcomes(Registry(tmp_path), ADAPTER)
    assert found["base"].outcome == "not checked"
    assert "no fingerprint" in found["base"].detail
    assert found["parent"].outcome == "not checked"
    commit_model(tmp_path, base=BaseReference(name_or_path="/nowhere/Base", fingerprint="sha256:0"))
    assert "not on this machine" in outcomes(Registry(tmp_path), MODEL)["base"].detail
    samples.dense(tmp_path / "Foreign")
    assert outcomes(Registry(tmp_path), "Foreign")["record"].outcome == "not checked"


def test_verification_finds_changed_files_weights_names_and_bases(tmp_path: Path) -> None:
    base = samples.dense(tmp_path / "elsewhere" / "Base")
    root, registry = tmp_path / "root", Registry(tmp_path / "root")
    path = commit_model(root, base=BaseReference(name_or_path=str(base), fingerprint=fingerprint_base(base)))
    samples.dense(base, "F16")
    assert outcomes(registry, MODEL)["base"].outcome == "failed"
    assert "has changed" in outcomes(registry, MODEL)["base"].detail
    (path / "config.json").write_text('{"a": 1}')
    assert "config.json has" in outcomes(registry, MODEL)["files"].detail
    samples.bnb4(path)
    assert outcomes(registry, MODEL)["weights"].outcome == "failed"
    path.rename(root / "Other-base")
    detail = outcomes(registry, "Other-base")["name"].detail
    assert detail.startswith("the folder is called Other-base")
    assert detail.endswith(f"the record says {MODEL}; rename it back to {MODEL}")
    (root / MODEL).mkdir()
    assert "that is beside it: remove one of the two" in outcomes(registry, "Other-base")["name"].detail


def test_a_name_that_the_record_does_not_bear_out_fails(tmp_path: Path) -> None:
    wrong = commit_adapter(tmp_path, name="Base-d_SFT_LoRa8_QLORA_w8_headbf16")
    check = outcomes(Registry(tmp_path), wrong.name)["name"]
    assert (check.outcome, check.detail) == ("failed", f"recipe and weights give the name {ADAPTER}")


def test_a_fingerprint_is_of_the_content_wherever_it_lies(tmp_path: Path) -> None:
    one, two = samples.dense(tmp_path / "one"), samples.dense(tmp_path / "two")
    (two / "README.md").write_text("not part of it")
    assert fingerprint_base(one) == fingerprint_base(two)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", fingerprint_base(one))
    samples.dense(two, "F16")
    assert fingerprint_base(one) != fingerprint_base(two)
    samples.dense(two)
    (two / "config.json").write_text('{"rope_theta": 5}')
    assert fingerprint_base(one) != fingerprint_base(two)
    with pytest.raises(UsageError, match="holds no weight files"):
        fingerprint_base(samples.adapter(tmp_path / "adapter"))
    with pytest.raises(UsageError, match="no such file or folder"):
        fingerprint_base("./nowhere")


def test_a_merged_adapter_record_keeps_its_recipe(tmp_path: Path) -> None:
    record = Registry(tmp_path).find(commit_model(tmp_path)).record
    assert record is not None
    assert record.recipe.spec == QLORA
    assert record.quantization.method == "NoQuant"
