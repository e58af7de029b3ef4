"""The steps of a sweep as processes: what one that fails costs, whom others wait for, and what a scheduler is given."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from quantkit import console
from quantkit_tools import sweep_running
from quantkit_tools.sweep_commands import jobs, slurm_script, write_runs
from quantkit_tools.sweep_journal import Standing
from quantkit_tools.sweep_planning import SweepPlan
from quantkit_tools.sweep_running import Runner
from tests.tools.sweeps import journal_of, planned


def run_with(plan: SweepPlan, monkeypatch: pytest.MonkeyPatch, commands: dict[str, list[str]]) -> Any:
    """Run a plan whose steps are other, lighter commands; those that end well count as done."""
    journal = journal_of(plan)
    ran: set[str] = set()

    def standing(step: Any) -> Standing:
        log = plan.work / "logs" / f"{step.name}.log"
        done = step.name in ran and log.is_file() and "usage" in log.read_text()
        return Standing("done", "", "0") if done else Standing("to do")

    def command(_: SweepPlan, step: Any) -> list[str]:
        ran.add(step.name)
        return commands[step.policy]

    monkeypatch.setattr(sweep_running, "command_of", command)
    monkeypatch.setattr(journal, "standing", standing)
    return Runner(plan, journal, workers=2).run()


def test_a_step_that_fails_costs_itself_and_its_merges_only(
    write_sweep: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(write_sweep(vary={"quant_method": ["QLORA"], "merge": ["kept", "base", "dequantized"]}))
    good, bad = ["--help"], ["no-such-verb"]
    outcome = run_with(plan, monkeypatch, {"kept": good, "base": bad, "dequantized": good})
    kept, base, dequantized = (step.name for step in plan.steps)
    assert set(outcome.done) == {kept, dequantized} or set(outcome.done) == {kept, base}
    assert len(outcome.failed) == 1
    assert "no verb is called 'no-such-verb'" in next(iter(outcome.failed.values()))
    entry = journal_of(plan).entry(next(step for step in plan.steps if step.name in outcome.failed))
    assert entry is not None
    assert entry.outcome == "failed"
    assert "failed before: no verb is called" in journal_of(plan).standing(plan.steps[1 + (base not in outcome.failed)]).detail
    outcome = run_with(plan, monkeypatch, {"kept": bad, "base": good, "dequantized": good})
    assert outcome.failed[base] == f"its adapter {kept} was not made"


def test_which_run_of_how_many_started_and_its_log_are_said_and_a_terminal_follows_the_log(
    write_sweep: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(console, "live_lines", lambda: nullcontext(shown.extend))
    plan = planned(write_sweep(vary={"quant_method": ["QLORA"], "merge": ["kept", "base"]}))
    talks = ["no-such-verb"]
    run_with(plan, monkeypatch, {"kept": ["--help"], "base": talks})
    printed = capsys.readouterr().out
    for number, step in enumerate(plan.steps, start=1):
        log = plan.work / "logs" / f"{step.name}.log"
        assert f"[{number}/2] {step.kind} {step.name} (log: {log})" in printed.splitlines()
        assert sweep_running._last_line(log) == log.read_text().strip().splitlines()[-1].strip()
    assert {"[1/2] starting"} <= set(shown)
    (tmp := plan.work / "long.log").write_text("x\n" * 5000 + "train: 3/10 steps\n\n")
    assert sweep_running._last_line(tmp) == "train: 3/10 steps"


def test_what_another_process_is_at_is_waited_for(
    write_sweep: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(write_sweep())
    lock = journal_of(plan).lock(plan.steps[0])
    assert lock.acquire()
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"], pass_fds=[lock.handle])
    lock.release()
    outcome = run_with(plan, monkeypatch, {"dequantized": ["--help"]})
    other.wait()
    assert list(outcome.done) == [plan.steps[0].name]
    assert "another process is at it; waiting" in capsys.readouterr().out


def test_how_a_process_ended_is_said(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert sweep_running._error_of(log, -9) == "its process was ended by SIGKILL (killed, or out of memory)"
    log.write_text("loading\nValueError: no\n\n")
    assert sweep_running._error_of(log, 1) == "exit code 1: ValueError: no"
    log.write_text("error: no such column\nbye\n")
    assert sweep_running._error_of(log, 2) == "no such column"


def test_jobs_for_a_scheduler_run_in_any_order_and_merges_after_their_adapter(write_sweep: Any, tmp_path: Path) -> None:
    gptq = {"quant_method": "GPTQ", "group_size": 64}
    plan = planned(
        write_sweep(vary={"quant_method": ["NoQuant", gptq], "peft_config": ["LoRa", "DoRa"], "merge": ["kept", "base"]})
    )
    lines = jobs(plan, plan.steps)
    assert len(lines) == 3  # both adapters on GPTQ need its base
    script = tmp_path / "job.sh"
    script.write_text(slurm_script(plan, plan.steps, "quantkit sweep small.json"))
    assert "--array=0-2" in script.read_text()
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "quantkit"
    fake.write_text('#!/bin/sh\necho "$1 $5 $2"\n')
    fake.chmod(0o755)
    path = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    def task(number: int) -> "subprocess.CompletedProcess[str]":
        env = path | {"SLURM_ARRAY_TASK_ID": str(number)}
        return subprocess.run(["bash", script], env=env, capture_output=True, text=True, check=False)

    done = [task(number) for number in range(4)]
    assert [item.returncode for item in done] == [0, 0, 0, 2]
    assert [line.split()[0] for line in done[2].stdout.splitlines()] == ["train", "merge", "train", "merge"]
    write_runs(plan)
    runs = json.loads((plan.work / "runs.json").read_text())
    assert set(runs) == {step.name for step in plan.steps if step.kind == "train"}
    assert runs[plan.steps[0].name]["merge_after_train"] is False


def test_emitted_commands_are_one_line_per_job(write_sweep: Any, quantkit: Any) -> None:
    code, out, _ = quantkit("sweep", write_sweep(vary={"seed": [1, 2]}), "--emit", "commands")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [["quantkit", "train"]] * 2


def theirs(step: Any) -> None:
    """Put a folder that is not ours where a step is to write."""
    step.target.mkdir(parents=True, exist_ok=True)
    (step.target / "config.json").write_text("{}")


def test_nothing_is_emitted_that_another_artifact_is_in_the_way_of(write_sweep: Any, quantkit: Any) -> None:
    path = write_sweep(vary={"seed": [1, 2], "merge": ["kept", "base"]})
    first, merge, *_ = planned(path).steps
    theirs(first)
    code, out, err = quantkit("sweep", path, "--emit", "commands")
    assert code == 0
    assert "1 in the way: remove the artifact" in err
    assert len(out.splitlines()) == 1
    assert first.name not in out
    assert merge.name not in out
    for step in planned(path).steps:
        theirs(step)
    code, out, err = quantkit("sweep", path, "--emit", "slurm")
    assert (code, out) == (0, "")
    assert "nothing can run; " in err
