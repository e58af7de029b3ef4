"""`quantkit evaluate --reference`: which model an artifact is compared with, what is filed, and what is refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantkit.errors import UsageError
from quantkit.evaluation.results import TaskResult
from quantkit_registry.store import Registry
from quantkit_tools.cli import run_verb
from quantkit_tools.evaluation.reference import source_of
from quantkit_tools.listing import scores_of
from tests.adapters import foreign_lora


@pytest.fixture
def data(tmp_path: Path) -> str:
    rows = [{"question": f"There are {a} eggs and 9 eggs. How many?", "answer": float(a + 9)} for a in range(2, 6)]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A foreign LoRA adapter on the tiny model that changes it a little."""
    return foreign_lora(tiny_model, tmp_path_factory.mktemp("adapters") / "tiny-lora", std=0.02)


def run(*arguments: str, registry: Path) -> int:
    return run_verb("evaluate", [*arguments, "--registry", str(registry), "--max-new-tokens", "6", "--json"])


def test_an_adapter_is_compared_with_its_base_and_the_filed_result_says_so(
    adapter: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(adapter), "--data", data, "--method", "NoQuant", "--reference", "source", registry=tmp_path / "r") in (0, 3)
    (artifact,) = json.loads(capsys.readouterr().out)["artifacts"]
    (result,) = artifact["results"]
    assert result["settings"]["reference"].startswith("Tiny-Llama ")
    assert 0 < result["scores"]["kl_mean"]["value"] < result["scores"]["kl_mean"]["floors"][0]["value"]
    assert all(row["kl"] > 0 for row in result["rows"])
    stages = [stage["stage"] for stage in artifact["memory"]["stages"]]
    assert stages[-2:] == ["reference: load", "sums: divergence"]
    filed = Registry(tmp_path / "r").results(artifact["artifact"])["sums"]
    assert TaskResult.from_dict(filed) == TaskResult.from_dict(result)


def test_divergence_alone_is_filed_too(
    adapter: Path, tiny_model: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (str(adapter), "--data", data, "--method", "NoQuant", "--task", "divergence", "--reference", str(tiny_model))
    assert run(*arguments, registry=tmp_path / "r") == 0
    (artifact,) = json.loads(capsys.readouterr().out)["artifacts"]
    filed = TaskResult.from_dict(Registry(tmp_path / "r").results(artifact["artifact"])["sums"])
    assert (filed.kind, filed.metric, filed.cost.generated_tokens) == ("divergence", "kl_mean", 0)
    entry: Any = SimpleNamespace(hash=artifact["artifact"])
    assert scores_of(Registry(tmp_path / "r"), entry)["sums"] == f"kl_mean {filed.main.value:.3g}"


def test_divergence_without_a_reference_is_refused_before_weights_are_read(
    tiny_model: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(tiny_model), "--data", data, "--task", "divergence", registry=tmp_path / "r") == 2
    said = capsys.readouterr().err
    assert "task 'divergence' compares with a reference model; --reference names it" in said
    assert "Loading weights" not in said


def test_a_reference_of_another_vocabulary_is_refused_before_weights_are_read(
    tiny_model: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert run(str(tiny_model), "--data", data, "--reference", str(other), registry=tmp_path / "r") == 2
    assert "and '!' is number 4 there and 3 here; divergence compares models of one vocabulary" in capsys.readouterr().err


def test_without_a_record_of_its_source_there_is_no_source(tiny_model: Path, tmp_path: Path) -> None:
    from quantkit.methods import installed_methods
    from quantkit_tools.opening import open_path

    registry = Registry(tmp_path)
    opened: Any = open_path(str(tiny_model), installed_methods(), registry=registry, device="cpu")
    with pytest.raises(UsageError, match="nothing records what it was made from; --reference PATH names a model"):
        source_of(opened, registry)
