"""What happens where our promises are tried, with us and with what people use today?

    python benchmarks/reliability.py [--quick] [--json FILE] [--peers trl | none] [--peer-envs DIR]

The same faults on the same small model: a checkpoint whose save is killed at its k-th call that changes files (transformers'
Trainer), a damaged newest checkpoint, NaN in a weight or gradient, adapters that must not be merged (PEFT), rows that teach the
wrong thing (TRL). Ours are the tests of `make reliability`, run here with their figures. Exit code 3 when one of ours is lost.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from goals import Goal, add_flags, finish

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
OURS = {
    "checkpoint killed while it is saved": "test_r01_kills.py::test_a_checkpoint_and_the_rotation_after_it",
    "newest checkpoint damaged": "test_r02_corruptions.py::"
    "test_a_damaged_checkpoint_is_named_and_the_run_ends_as_if_it_had_not_been_damaged[LoRA]",
    "numbers that are not finite": "test_r09_nan.py",
    "merges that must not be": "test_r10_merge_faults.py",
    "rows that teach the wrong thing": "test_r08_training_data.py",
}
PEERS = {
    "checkpoint killed while it is saved": "transformers",
    "newest checkpoint damaged": "transformers",
    "numbers that are not finite": "transformers",
    "merges that must not be": "PEFT",
    "rows that teach the wrong thing": "TRL",
}


def main() -> int:
    """Try, print, write, and return the exit code."""
    from peers.environments import default_cache

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--peers", choices=("trl", "none"), help="by default trl, in the short form none")
    parser.add_argument("--peer-envs", metavar="DIR", type=Path, default=default_cache(), help="where TRL's environment lives")
    arguments = parser.parse_args()
    from quantkit.console import table, use_stderr
    from quantkit.environment import describe_environment

    use_stderr()
    ours = {name: figures(test, full=not arguments.quick) for name, test in OURS.items()}
    theirs = peers(arguments)
    rows = []
    for name, (held, tried) in ours.items():
        found = theirs.get(name)
        said = ", ".join(f"{count} {word}" for word, count in sorted(found.items())) if found else None
        rows.append([name, f"{held} of {tried}", PEERS[name], said])
    table("The same faults", ["fault", "quantkit: found or survived", "beside it", "what it did"], rows)
    goals = [
        Goal(f"quantkit: {name}", f"{held} of {tried}", f"{tried} of {tried}", 0 < held == tried)
        for name, (held, tried) in ours.items()
    ]
    result = {
        "setting": {"quick": arguments.quick},
        "environment": describe_environment("cpu"),
        "quantkit": {name: {"held": held, "tried": tried} for name, (held, tried) in ours.items()},
        "peers": {name: {"tool": PEERS[name], "outcomes": dict(found)} for name, found in theirs.items()},
    }
    return finish("reliability", result, goals, arguments.json)


def figures(test: str, *, full: bool) -> tuple[int, int]:
    """Run a test of `tests/reliability` and return how many of how many held; (0, 0) where it was skipped."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                f"--junitxml={report}",
                f"tests/reliability/{test}",
            ],
            cwd=ROOT,
            env={**os.environ, "QUANTKIT_RELIABILITY": "full" if full else ""},
            capture_output=True,
            check=False,
        )
        return counted(report.read_text())


def counted(report: str) -> tuple[int, int]:
    """Return the sums of the figures in a JUnit report.

    >>> counted('<x><property name="figure" value="(&apos;R1&apos;, 3, 4)"/><property name="figure" value="[2, 1, 1]"/></x>')
    (4, 5)
    """
    from ast import literal_eval
    from xml.etree import ElementTree

    found = [item.attrib["value"] for item in ElementTree.fromstring(report).iter("property") if item.get("name") == "figure"]
    values = [literal_eval(item) for item in found]
    return sum(value[1] for value in values), sum(value[2] for value in values)


def peers(arguments: argparse.Namespace) -> dict[str, Counter[str]]:
    """Return of each probe what the others did."""
    import reliability_peers as probes

    from tests.reliability.faults.watch import CAN_WATCH
    from tests.reliability.training import Small

    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        small = Small(Path(folder))
        if CAN_WATCH:
            found["checkpoint killed while it is saved"] = probes.kills(small, 4 if arguments.quick else 40)
        found["newest checkpoint damaged"] = probes.corruptions(small)
        found["numbers that are not finite"] = probes.not_finite(small)
        found["merges that must not be"] = probes.merges()
        if (arguments.peers or ("none" if arguments.quick else "trl")) == "trl":
            found["rows that teach the wrong thing"] = rows_by_trl(Path(folder) / "rows", arguments.peer_envs)
    return found


def rows_by_trl(folder: Path, envs: Path) -> Counter[str]:
    """Hand each fault in training data to TRL; return how often it was refused, and how often its first step was reached."""
    from peers.environments import peer_python

    from tests.preflight.faults import FAULTS
    from tests.tiny import tiny_model_folder

    python, found = peer_python("trl", envs)[0], Counter[str]()
    for number, (name, fault) in enumerate(FAULTS.items()):
        own = folder / str(number)
        job: dict[str, Any] = {
            "model": str(fault.model(tiny_model_folder(), own / "model")),
            "rows": str(fault.dataset(own)),
            "max_length": int(fault.settings[1]) if fault.settings else 128,
            "answer": str(own / "answer.json"),
            "scratch": str(own / "out"),
        }
        (own / "job.json").write_text(json.dumps(job))
        subprocess.run(
            [str(python), "-m", "peers.trl_rows", str(own / "job.json")],
            cwd=ROOT / "benchmarks",
            env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            check=False,
        )
        answer = json.loads((own / "answer.json").read_text())
        right = bool(fault.repaired) and answer["learnt"].strip().endswith(fault.repaired)
        found["learnt rightly" if right else "first step reached" if answer["reached"] else "refused"] += 1
        print(f"{name}: {answer}", file=sys.stderr)
    return found


if __name__ == "__main__":
    sys.exit(main())
