"""R8: whatever is wrong with training data is found before the first step, by `preflight` and by `train` itself.

The models here have no weights: a run that reaches the point where it would load them has not stopped.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from quantkit.data import PreparedData
from quantkit.data.encode import IGNORED
from quantkit.errors import QuantkitError
from quantkit_tools import stages
from tests.preflight.faults import FAULTS, Fault
from tests.reliability.conftest import Figure


class WouldLoadError(QuantkitError):
    """The run would load the model now."""

    exit_code = 70


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[PreparedData]:
    """The rows of runs that went on to load the model."""
    rows: list[PreparedData] = []
    prepare = stages.prepare_rows

    def prepared(*arguments: Any) -> PreparedData:
        rows.append(prepare(*arguments))
        return rows[-1]

    def load(*_: Any) -> Any:
        raise WouldLoadError

    monkeypatch.setattr(stages, "prepare_rows", prepared)
    monkeypatch.setattr(stages, "load_trainable", load)
    return rows


def _flags(fault: Fault, tiny_model: Path, folder: Path) -> list[object]:
    model = fault.model(tiny_model, folder / "model")
    return [
        "--model-name-or-path",
        model,
        "--dataset-name",
        fault.dataset(folder),
        "--output-dir",
        folder / "out",
        *fault.settings,
    ]


def _preflight(fault: Fault, flags: list[object], quantkit: Any) -> str:
    """Return what is wrong with what `preflight` says of a fault, or the empty string."""
    code, out, err = quantkit("preflight", *flags, "--json")
    findings = json.loads(out)["findings"] if out else []
    tells = [item for item in findings if item["check"] == fault.check and fault.found in item["found"]]
    severity = "repaired" if fault.repaired else "error"
    right = code == (0 if fault.repaired else 3) and any(item["severity"] == severity for item in tells)
    return "" if right else f"preflight ended with {code}\n{out}{err}"


def _train(fault: Fault, flags: list[object], reached: list[PreparedData], quantkit: Any) -> str:
    """Return what is wrong with how `train` ends on a fault, or the empty string."""
    before = len(reached)
    code, out, err = quantkit("train", *flags)
    if code == WouldLoadError.exit_code and fault.repaired:
        text = AutoTokenizer.from_pretrained(flags[1]).decode([x for x in reached[-1].train[-1].labels if x != IGNORED])
        told = any("numbers converted" in line for line in reached[-1].report.lines())
        return "" if text.endswith(fault.repaired) and told else f"train would have learnt {text!r}"
    stopped = code in (2, 3) and err.count("\n") == 1 and len(reached) == before
    return "" if stopped else f"train ended with {code}\n{out}{err}"


def test_every_fault_is_found_before_the_model_is_loaded(
    tiny_model: Path,
    tmp_path: Path,
    reached: list[PreparedData],
    quantkit: Any,
    figure: Figure,
) -> None:
    """Refused with 2 or 3 in one line; the one that is repaired is said to be, and the number is what is learnt."""
    missed: dict[str, str] = {}
    for number, (name, fault) in enumerate(FAULTS.items()):
        flags = _flags(fault, tiny_model, tmp_path / str(number))
        if wrong := _preflight(fault, flags, quantkit) or _train(fault, flags, reached, quantkit):
            missed[name] = wrong
    for name, wrong in missed.items():
        print(f"{name}: {wrong}\n")
    figure("R8", len(FAULTS) - len(missed), len(FAULTS))
