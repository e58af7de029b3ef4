"""Artifacts of every released version load, are what they were, and say what they said."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from quantkit.evaluation.results import TaskResult
from quantkit.files import verify_manifest
from quantkit.methods import installed_methods
from quantkit_registry.records import read_record
from quantkit_registry.store import RESULTS, Registry
from quantkit_registry.verify import verify
from tests.golden.outputs import outputs

GOLDEN = Path(__file__).parent
VERSIONS = sorted(path.name for path in GOLDEN.iterdir() if (path / "outputs.json").is_file())
CASES = [
    (version, name)
    for version in VERSIONS
    for name in json.loads((GOLDEN / version / "outputs.json").read_text(encoding="utf-8"))
]
NEAR = 0.05
"""Logits of about 10 may differ by so much: other machines sum 16-bit products in another order."""


def test_each_version_has_an_adapter_a_merge_and_a_quantized_model() -> None:
    assert "0.1.0" in VERSIONS
    for version in VERSIONS:
        kinds = {read_record(GOLDEN / version / "artifacts" / name).kind for at, name in CASES if at == version}
        assert kinds == {"adapter", "model"}
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 1_500_000 * len(VERSIONS)


@pytest.mark.parametrize(("version", "name"), CASES)
def test_an_artifact_says_what_it_said(version: str, name: str) -> None:
    wanted: dict[str, Any] = json.loads((GOLDEN / version / "outputs.json").read_text(encoding="utf-8"))[name]
    folder = GOLDEN / version / "artifacts" / name
    record = read_record(folder)
    verify_manifest(folder)
    found = outputs(folder, GOLDEN / version / "Micro-Llama" if record.kind == "adapter" else None)
    assert record.name == name
    assert (found["method"], found["prompt_ids"]) == (wanted["method"], wanted["prompt_ids"])
    assert found["logits"] == pytest.approx(wanted["logits"], abs=NEAR)
    assert found["nll"] == pytest.approx(wanted["nll"], abs=NEAR)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_registry_of_that_version_is_read_whole(version: str, tmp_path: Path) -> None:
    """Listed, verified, with its results; records, hashes and names are still good."""
    root = tmp_path / "artifacts"
    shutil.copytree(GOLDEN / version / "artifacts", root)
    registry = Registry(root)
    assert {entry.name: entry.fault for entry in registry.entries()} == {name: "" for at, name in CASES if at == version}
    for entry in registry.artifacts():
        checks = verify(registry, entry, claims=installed_methods().claims())
        assert [check for check in checks if check.outcome == "failed"] == []
    assert all(registry.results(str(entry.hash)) for entry in registry.artifacts() if entry.name.endswith("_mergedbf16"))
    results = list((root / RESULTS).rglob("*.json"))
    assert results
    for path in results:
        read = TaskResult.from_dict(json.loads(path.read_text(encoding="utf-8")))
        assert read.n > 0
        assert read.rows
