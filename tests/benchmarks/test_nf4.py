"""Does the benchmark of calibrated 4-bit bases run, and are its goals about the base alone?"""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_the_quick_form_runs(tiny_model: Path, tmp_path: Path):
    command = [sys.executable, str(BENCHMARKS / "nf4.py"), "--quick", "--steps", "2", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert all(goal["holds"] for goal in found["goals"])
    assert not any("response loss" in goal["name"] for goal in found["goals"])
    assert {item["verdict"] for item in found["training_difference"].values()} <= {"lower", "higher", "no difference shown"}
