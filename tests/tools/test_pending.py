"""`quantkit evaluate --pending`: each artifact and task once, whoever dies and whoever else is at it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from quantkit.errors import UsageError
from quantkit.evaluation.results import SCHEMA_VERSION
from quantkit.files import new_folder
from quantkit.locks import Lock, is_free, try_lock, wait_until_free
from quantkit.spec import QuantizationSpec
from quantkit_registry.records import ArtifactRecord, BaseReference, write_record
from quantkit_registry.store import Registry
from quantkit_tools.evaluation.counting import lock_path, reference_of, why_pending
from quantkit_tools.evaluation.flags import Flags
from quantkit_tools.evaluation.scoring import tasks_of

QUICK = ["--limit", "2", "--max-new-tokens", "2"]


@pytest.fixture
def artifacts(tiny_model: Path, tmp_path: Path) -> Path:
    """A registry of two snapshots that differ in a byte of their card."""
    for name in ("One-base", "Two-base"):
        snapshot(tiny_model, tmp_path / "artifacts", name)
    return tmp_path / "artifacts"


def snapshot(model: Path, root: Path, name: str, **verification: Any) -> Path:
    from quantkit.plan import AdapterPlan, QuantizationPlan, Stage

    spec = QuantizationSpec.dense("bfloat16")
    plan = QuantizationPlan(method="NoQuant", stage=Stage.BASE, spec=spec, adapter=AdapterPlan(kind="NoPeft"))
    record = ArtifactRecord(
        name=name,
        kind="model",
        quantization=spec,
        recipe=plan,
        base=BaseReference(name_or_path=str(model)),
        verification=verification,
    )
    with new_folder(root / name) as folder:
        for file in model.iterdir():
            os.link(file, folder / file.name)
        write_record(folder, record)
    return root / name


def start(root: Path, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-u", "-m", "quantkit_tools.cli", "evaluate", "--pending", "--registry", str(root), "--json"]
    return subprocess.Popen([*command, *QUICK, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> tuple[int, Any, str]:
    out, err = process.communicate(timeout=400)
    return process.returncode, json.loads(out) if out else None, err


def files_of(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted((root / "results").glob("*/*.json"))}


def wait_for(found: Any, what: str) -> Any:
    for _ in range(3600):
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen")


def test_what_is_pending_is_listed_with_the_reason_and_nothing_is_written(artifacts: Path, quantkit: Any) -> None:
    code, out, _ = quantkit("evaluate", "--pending", "--registry", artifacts, "--dry-run", *QUICK)
    assert code == 0
    assert "One-base" in out
    assert "no result" in out
    assert "2 of 2 artifacts lack a result" in out
    assert not (artifacts / "results").exists()


def test_a_folder_without_artifacts_is_named(tmp_path: Path, quantkit: Any) -> None:
    nowhere = tmp_path / "nowhere"
    for more in ([], ["--dry-run"]):
        code, out, _ = quantkit("evaluate", "--pending", "--registry", nowhere, *more)
        assert code == 0
        assert f"{nowhere}: no artifacts of ours are here, so nothing is to be evaluated\n" in out
    code, out, err = quantkit("evaluate", "--pending", "--registry", nowhere, "--json")
    assert (code, json.loads(out)["artifacts"]) == (0, [])
    assert "no artifacts of ours are here" in err


def test_after_kill_9_in_the_middle_nothing_is_lost_and_nothing_is_done_twice(tiny_model: Path, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    snapshot(tiny_model, root, "One-base")
    first = start(root)
    done = wait_for(lambda: files_of(root), "the first result")
    workers = psutil.Process(first.pid).children(recursive=True)
    os.kill(first.pid, signal.SIGKILL)
    for worker in workers:
        if worker.is_running():
            worker.kill()
    first.communicate()
    done = files_of(root)
    code, printed, err = finish(start(root))
    assert code in (0, 3), err  # two tokens are no whole answer
    after = files_of(root)
    assert len(after) == 2
    assert {path: after[path] for path in done} == done
    assert [len(artifact["results"]) for artifact in printed["artifacts"]] == [2]
    assert finish(start(root))[1]["artifacts"] == printed["artifacts"]
    assert files_of(root) == after
    assert not list((root / "results").glob("*/.*"))


def test_two_runs_at_once_share_the_work_and_a_crash_of_one_worker_costs_only_its_artifact(artifacts: Path) -> None:
    first = start(artifacts)
    wait_for(lambda: list((artifacts / "results").glob("*/.*.lock")), "a claim")
    second = start(artifacts)
    worker = next(child for child in psutil.Process(first.pid).children() if "spawn_main" in " ".join(child.cmdline()))
    worker.kill()
    ends = [finish(first), finish(second)]
    assert len(files_of(artifacts)) == 4
    assert [len(item["results"]) for item in ends[1][1]["artifacts"]] == [2, 2]
    assert ends[0][0] in (1, 3)  # the crash, or that two tokens are no whole answer
    assert [failure["path"] for failure in ends[0][1]["failed"]] == [str(artifacts / "One-base")]
    assert "its process ended without a result (killed, or out of memory)" in ends[0][2]
    assert ends[1][0] in (0, 3)


def test_an_artifact_that_failed_its_gate_ends_with_code_3(
    tiny_model: Path, tmp_path: Path, quantkit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantkit_tools.evaluation.pending.show", lambda *_, **__: {})
    root = tmp_path / "artifacts"
    snapshot(tiny_model, root, "Bad-base", gate={"outcome": "failed", "reasons": ["perplexity ratio 9 is above 1.5"]})
    flags = Flags(paths=(), registry=str(root), limit=2, max_new_tokens=2)
    artifact = Registry(root).artifacts()[0]
    for task in tasks_of(flags, None):
        file_of(root, str(artifact.hash), task, flags)
    code, out, err = quantkit("evaluate", "--pending", "--registry", root, *QUICK, "--json")
    assert code == 3
    assert "Bad-base failed its gates: perplexity ratio 9 is above 1.5" in err
    assert "perplexity ratio 9" in json.loads(out)["failed_gates"]["Bad-base"]


def file_of(root: Path, artifact: str, task: Any, flags: Flags) -> None:
    """File a whole result without running a model."""
    from quantkit.evaluation.results import ArtifactResult, Cost, TaskResult
    from quantkit.evaluation.statistics import share_score
    from quantkit_tools.evaluation.scoring import file_result

    cost = Cost(generated_tokens=1, generation_s=1.0, tokens_per_s=1.0, perplexity_s=1.0, peak_rss_bytes=1)
    result = TaskResult(
        task=task.name,
        kind=task.kind,
        metric="exact_match",
        source=task.source,
        data_fingerprint=task.fingerprint,
        n=len(task.examples),
        seed=flags.seed,
        settings={"max_new_tokens": flags.max_new_tokens, "system_prompt": None},
        scores={"exact_match": share_score(2, 2, coverage=1.0)},
        cost=cost,
        rows=[],
    )
    whole = ArtifactResult(
        path="x", name="x", artifact=artifact, kind="model", quantization={}, evidence=[], memory={}, results=[]
    )
    file_result(Registry(root), whole, result)


def test_a_result_counts_only_for_the_same_rows_and_settings(tmp_path: Path) -> None:
    flags = Flags(paths=(), limit=2, max_new_tokens=2)
    task = tasks_of(flags, None)[0]
    file_of(tmp_path, "0" * 64, task, flags)
    filed = Registry(tmp_path).results("0" * 64)[task.name]
    assert why_pending(None, task, flags) == "no result"
    assert why_pending(filed, task, flags) == ""
    assert why_pending(filed, task, Flags(paths=(), limit=2, max_new_tokens=2, batch_size=1)) == ""
    assert "max_new_tokens 2, not 3" in why_pending(filed, task, Flags(paths=(), limit=2, max_new_tokens=3))
    assert "seed 0, not 1" in why_pending(filed, task, Flags(paths=(), seed=1, max_new_tokens=2))
    assert f"schema_version 1, not {SCHEMA_VERSION}" in why_pending(filed | {"schema_version": 1}, task, flags)
    prompted = tasks_of(flags, "Answer.")[0]
    assert "system_prompt None, not 'Answer.'" in why_pending(filed, prompted, flags)
    assert "compared with no reference model, not Base" in why_pending(filed, task, flags, "Base")
    compared = filed | {"settings": filed["settings"] | {"reference": "Base 0123"}}
    assert why_pending(compared, task, flags, "Base") == ""
    assert "compared with Base 0123, not Base 4567" in why_pending(compared, task, flags, "Base 4567")
    other = tasks_of(Flags(paths=(), limit=3), None)[0]
    assert "other rows" in why_pending(filed, other, flags)


def test_the_reference_of_an_artifact_is_what_it_was_made_from(artifacts: Path, tiny_model: Path) -> None:
    registry = Registry(artifacts)
    one = registry.find("One-base")
    assert reference_of(Flags(paths=()), registry, one) is None
    assert reference_of(Flags(paths=(), reference="source"), registry, one) == tiny_model.name
    assert reference_of(Flags(paths=(), reference="org/Model"), registry, one) == "Model"
    known = reference_of(Flags(paths=(), reference="Two-base"), registry, one)
    assert known == f"Two-base {str(registry.find('Two-base').hash)[:12]}"


def test_one_content_under_two_names_is_evaluated_once(artifacts: Path, quantkit: Any) -> None:
    import shutil

    shutil.copytree(artifacts / "One-base", artifacts / "Zwei-base")
    _, out, _ = quantkit("evaluate", "--pending", "--registry", artifacts, "--dry-run", "--json", *QUICK)
    assert [item["name"] for item in json.loads(out)["pending"]] == ["One-base", "Two-base"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dry-run"], "--dry-run lists what has no result yet; it goes with --pending"),
        (["--pending", "--method", "QLORA"], "--method says what no file records"),
        (["--pending", "--base", "x"], "--base says what no file records"),
        (["--pending", "nowhere"], "is called 'nowhere'"),
        (["--pending", "TINY"], "was not made by quantkit; --pending is for artifacts of ours"),
    ],
)
def test_what_cannot_be_pending_is_one_line(
    arguments: list[str], said: str, quantkit: Any, tmp_path: Path, tiny_model: Path
) -> None:
    given = [str(tiny_model) if word == "TINY" else word for word in arguments]
    code, _, err = quantkit("evaluate", *given, "--registry", tmp_path)
    assert code == 2
    assert said in err


def test_a_lock_is_one_holders_until_it_ends_however_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.lock"
    with try_lock(path) as held:
        assert held
        assert not is_free(path)
        with try_lock(path) as twice:
            assert not twice
    assert not path.exists()
    lock = Lock(path)
    assert lock.acquire()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[lock.handle])
    lock.release()
    assert not is_free(path)  # the child holds it
    child.kill()
    child.wait()
    wait_until_free(path)
    assert is_free(path)
    with pytest.raises(UsageError, match="the lock is not held"):
        _ = lock.handle
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        Lock(tmp_path / "file" / "x.lock").acquire()


def test_locks_stand_beside_the_results_they_guard_and_are_no_results(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    with try_lock(lock_path(registry, "0" * 64, "arc")):
        assert registry.results("0" * 64) == {}
