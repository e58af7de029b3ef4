"""R14: the whole road, from rows to a report, needs no network and does not try to reach one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from quantkit.data.arithmetic import arithmetic_data
from tests.reliability.network import without_network

ROOT = Path(__file__).resolve().parents[2]
JUDGED = {"quantize": 3, "evaluate": 3, "audit": 3}
"""How verbs that judge may end on a model that was trained for two steps."""


def test_the_road_from_rows_to_a_report_reaches_for_no_host(tiny_model: Path, tmp_path: Path, figure: Any) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in arithmetic_data(train=16).train))
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    command = [sys.executable, "-m", "tests.reliability.network", str(tiny_model), str(rows), str(tmp_path)]
    done = subprocess.run(
        [*without_network(), *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment | {"HF_HOME": str(tmp_path / "empty"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["tried"] == []
    held = [verb for verb, code in told["codes"].items() if code in (0, JUDGED.get(verb))]
    assert held == list(told["codes"]), (told["codes"], done.stderr[-3000:])
    assert (tmp_path / "report.html").stat().st_size > 10_000
    figure("R14", len(held), len(told["codes"]))


def test_an_attempt_to_reach_a_host_is_seen() -> None:
    code = (
        "import socket; from tests.reliability.network import forbid_network; tried = forbid_network()\n"
        "try: socket.create_connection(('localhost', 9))\n"
        "except ConnectionError as error: assert 'there is no network here' in str(error)\n"
        "assert len(tried) == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
