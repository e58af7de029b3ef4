"""How is one case measured so that nothing of another case is in its numbers? Two processes each, and a file of results.

The first quantizes (ours in this environment, a peer's in its own) and says what that took; the second loads what was
saved and measures it. What fails becomes a row with the last line of its error. One process for all would report the
largest peak of memory for every case after it.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from threading import Lock
from typing import Any

from quantize_cases import GROUP_SIZE, OURS, Case
from quantize_make import CHECKED_ROWS

from quantkit.errors import QuantkitError
from quantkit.files import write_json

LOCK = Lock()
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ROOMS = (ROOT, ROOT / "plugins", ROOT / "registry", ROOT / "tools")
"""Our processes run the source beside this file, whatever checkout the environment was installed from."""


@dataclass(frozen=True)
class Setting:
    """What all cases share."""

    model: str
    texts: Path
    """JSON: `calibration` and `held_out` rows of token ids, and where they come from."""
    fingerprint: str
    """Of model and texts."""
    scratch: Path
    peer_envs: Path
    results: Path
    """Folder of one JSON file per measured case."""
    resume: bool
    limit_s: int
    """Seconds after which a process is given up."""
    jobs: int = 1
    """Cases at a time; each gets its share of the cores."""


def measure_all(cases: Sequence[Case], setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield the row of each case, in their order."""
    with ThreadPoolExecutor(setting.jobs) as pool:
        yield from pool.map(lambda case: measured(case, setting), cases)


def measured(case: Case, setting: Setting) -> dict[str, Any]:
    """Return the row of a case: from the file where it was measured before and may be used again, else measured now."""
    try:
        with LOCK:  # an environment is made once
            maker = _maker(case, setting)
    except QuantkitError as error:  # pip's refusals are results too
        return _row(case) | {"error": str(error)}
    file = setting.results / f"{_digest(case, setting, maker.identity)}.json"
    if setting.resume and file.is_file():
        return dict(json.loads(file.read_text())) | {"from_file": True}
    folder = Path(tempfile.mkdtemp(dir=setting.scratch))
    row = _row(case) | {"version": maker.version}
    try:
        row |= _measure(case, setting, maker, folder)
    except ProcessFailed as error:
        row["error"] = str(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    write_json(file, row)
    return row


def dense_row(setting: Setting) -> dict[str, Any]:
    """Return the row of the 16-bit model, and leave its behaviour for the others to be compared with."""
    folder = setting.scratch / "dense"
    folder.mkdir()
    case = Case("", "16 bit", 16)
    return _row(case) | _evaluate(setting, folder, setting.model)


class ProcessFailed(Exception):  # noqa: N818 - it is reported, not raised to users
    """A process ended with an error; the text is its last line."""


@dataclass(frozen=True)
class Maker:
    """The process that quantizes: its command, what its result depends on, and the version in the table."""

    command: list[str]
    identity: str
    version: str


def _maker(case: Case, setting: Setting) -> Maker:
    from quantkit import __version__

    if case.by == OURS:
        return Maker([sys.executable, str(HERE / "quantize_make.py")], _source_digest(), __version__)
    from peers.environments import PACKAGES, peer_python

    python, versions = peer_python(case.by, setting.peer_envs)
    script = (HERE / "peers" / f"{case.by}.py").read_text()
    return Maker([str(python), "-m", f"peers.{case.by}"], repr(sorted(versions.items())) + script, versions[PACKAGES[case.by]])


def _measure(case: Case, setting: Setting, maker: Maker, folder: Path) -> dict[str, Any]:
    text = json.loads(setting.texts.read_text())
    out = folder / "out"
    job: dict[str, Any] = {"model": setting.model, "out": str(out), "answer": str(folder / "made.json")}
    if case.by == OURS:
        job |= {"plugin": case.plugin, "options": dict(case.options), "texts": str(setting.texts)}
    else:
        job |= {"method": case.method, "weights_bits": case.weights_bits, "group_size": GROUP_SIZE}
        job |= {"rows": text["calibration"]}
    made = _process(maker.command, job, folder / "make_job.json", setting)
    found = _evaluate(setting, folder, made.pop("out", str(out)))
    if "bits_per_weight" in made:
        found |= {"size_bytes": None, "loader": "dense weights on its grid"}
    kept, recorded = found.pop("kept_layout_nll", None), made.pop("recorded", None)
    if recorded is not None:
        checked = found["rows"][:CHECKED_ROWS]
        tokens = sum(row["tokens"] for row in checked)
        plain, said = sum(row["nll"] for row in checked), log(recorded["perplexity"])
        found["run_drift"] = abs(plain / tokens - said)
        found["stored_drift"] = found["run_drift"] if kept is None else abs(sum(kept) / tokens - said)
    return found | made | {"measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def _evaluate(setting: Setting, folder: Path, weights: str) -> dict[str, Any]:
    job = {
        "model": setting.model,
        "folder": weights,
        "texts": str(setting.texts),
        "reference": str(setting.scratch / "reference"),
        "answer": str(folder / "measured.json"),
    }
    command = [sys.executable, str(HERE / "quantize_measure.py")]
    return _process(command, job, folder / "measure_job.json", setting)


def _process(command: list[str], job: dict[str, Any], file: Path, setting: Setting) -> dict[str, Any]:
    file.write_text(json.dumps(job))
    cores = max(1, (os.cpu_count() or 1) // setting.jobs)
    environment = {
        "OMP_NUM_THREADS": str(cores),
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(map(str, (HERE, *(ROOMS if command[0] == sys.executable else ())))),
        "GPTQMODEL_CPU_WORKERS": str(cores),  # its own count gives each core several, which then wait for one another
    }
    try:
        done = subprocess.run(
            [*command, str(file)],
            check=False,
            capture_output=True,
            text=True,
            timeout=setting.limit_s,
            cwd=file.parent,  # some write logs where they stand
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise ProcessFailed(f"given up after {setting.limit_s} s") from None
    answer = Path(job["answer"])
    if done.returncode or not answer.is_file():
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ProcessFailed((lines or [f"exit code {done.returncode} without a word"])[-1][:300])
    return dict(json.loads(answer.read_text()))


def _row(case: Case) -> dict[str, Any]:
    return {"name": case.name, "by": case.by, "method": case.method, "weights_bits": case.weights_bits, "error": None}


def _digest(case: Case, setting: Setting, identity: str) -> str:
    measuring = (HERE / "quantize_measure.py").read_text()
    parts = (json.dumps(asdict(case), sort_keys=True), setting.fingerprint, identity, measuring)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _source_digest() -> str:
    """Return a hash of all source that our results depend on."""
    folders = (ROOT / "quantkit", ROOT / "plugins", ROOT / "tools")
    files = sorted(path for folder in folders for path in folder.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
