"""How do the steps of a sweep run: each in a process of its own, some at a time, and what if one dies, or all are told to
stop?

A step that fails costs itself and the merges of its adapter, nothing else. Each process holds the lock of its step for as
long as it lives, also where the sweep that started it was killed: a second sweep waits for it instead of training the same
thing beside it.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from quantkit import console
from quantkit.layout import counted
from quantkit.locks import Lock
from quantkit_tools.sweep_commands import command_of
from quantkit_tools.sweep_journal import Journal, Standing
from quantkit_tools.sweep_planning import Step, SweepPlan
from quantkit_tools.verb_process import command_line, why_ended

LOOK_EVERY_S = 0.2
MARKED = 3
"""Exit code of a run whose artifact is there, and marked."""
TAIL_BYTES = 4096
"""As much of a log's end is read for its last line."""
THREADS = "OMP_NUM_THREADS"


@dataclass(slots=True)
class Outcome:
    """What became of the steps."""

    done: dict[str, Standing] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def marked(self) -> dict[str, str]:
        """Return artifact → why its gate marked it."""
        return {name: standing.detail for name, standing in self.done.items() if standing.detail}


@dataclass(slots=True)
class _Running:
    step: Step
    number: str
    """`[3/7]`: the third of seven that started."""
    process: "subprocess.Popen[bytes]"
    lock: Lock
    log: Path
    started: float


class Runner:
    """Runs what is left of a plan, at most `workers` processes at a time."""

    def __init__(self, plan: SweepPlan, journal: Journal, *, workers: int) -> None:
        self._plan, self._journal, self._workers = plan, journal, workers
        left = {step.name for step in left_to_do(plan, journal)}
        self._waiting = [step for step in plan.steps if step.name in left]
        self._running: list[_Running] = []
        self._said: set[str] = set()
        self.outcome = Outcome(done={step.name: journal.standing(step) for step in plan.steps if step.name not in left})

    def run(self) -> Outcome:
        """Run until nothing is left, or a signal comes; processes then save what they have and are waited for."""
        with _signals(), console.live_lines() as show:
            try:
                while self._waiting or self._running:
                    before = len(self._waiting) + len(self._running)
                    self._start_ready()
                    self._running = [item for item in self._running if not self._ended(item)]
                    show([f"{item.number} {_last_line(item.log)}" for item in self._running])
                    if len(self._waiting) + len(self._running) == before:
                        time.sleep(LOOK_EVERY_S)
            except KeyboardInterrupt:
                self._stop()
        return self.outcome

    def _start_ready(self) -> None:
        for step in list(self._waiting):
            if len(self._running) < self._workers and self._may_start(step) and not self._settled(step):
                self._start(step)

    def _settled(self, step: Step) -> bool:
        """Take a step out that is done, in trouble, or whose adapter will not come; return whether it was."""
        standing = self._journal.standing(step)
        if standing.state == "done":
            self.outcome.done[step.name] = standing
        elif standing.state == "in the way":
            self.outcome.failed[step.name] = f"{step.target} is in the way: {standing.detail}"
        elif step.needs in self.outcome.failed:
            self.outcome.failed[step.name] = f"its adapter {step.needs} was not made"
        else:
            return False
        self._waiting.remove(step)
        return True

    def _may_start(self, step: Step) -> bool:
        ended = {*self.outcome.done, *self.outcome.failed}
        return {step.needs, step.after} - {None} <= ended

    def _start(self, step: Step) -> None:
        lock = self._journal.lock(step)
        if not lock.acquire():
            if step.name not in self._said:
                console.say(f"{step.name}: another process is at it; waiting")
                self._said.add(step.name)
            return
        if self._settled(step):
            lock.release()
            return
        self._waiting.remove(step)
        log = self._plan.work / "logs" / f"{step.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        number = f"[{len(self._plan.steps) - len(self._waiting)}/{len(self._plan.steps)}]"
        console.say(f"{number} {step.kind} {step.name} (log: {log})")
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command_line(command_of(self._plan, step)),
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=_environment(self._workers),
                pass_fds=(lock.handle,),
                start_new_session=True,
            )
        self._running.append(_Running(step, number, process, lock, log, time.monotonic()))

    def _ended(self, item: _Running) -> bool:
        code = item.process.poll()
        if code is None:
            return False
        duration_s = time.monotonic() - item.started
        standing = self._journal.standing(item.step)
        if code in (0, MARKED) and standing.state == "done":
            self._journal.write(item.step, "done", duration_s=duration_s)
            self.outcome.done[item.step.name] = standing
            marked = f", marked: {standing.detail}" if standing.detail else ""
            console.say(f"{item.step.name}: done in {console.format_duration(duration_s)}{marked}")
        elif not self.outcome.interrupted:
            error = _error_of(item.log, code)
            self._journal.write(item.step, "failed", duration_s=duration_s, error=error)
            self.outcome.failed[item.step.name] = error
            console.warn(f"{item.step.name} failed: {error} (log: {item.log})")
        item.lock.release()
        return True

    def _stop(self) -> None:
        """Tell the processes to end, which saves a checkpoint while training, and wait; a second signal kills them."""
        self.outcome.interrupted = True
        console.say(f"stopping {counted(len(self._running), 'process', 'processes')}; once more to stop at once")
        try:
            for item in self._running:
                item.process.terminate()
            for item in self._running:
                item.process.wait()
        except KeyboardInterrupt:
            for item in self._running:
                item.process.kill()
                item.process.wait()
        for item in self._running:
            self._ended(item)


def _last_line(log: Path) -> str:
    """Return the last line that a process has printed so far."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - TAIL_BYTES))
        lines = stream.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "starting")


def _error_of(log: Path, code: int) -> str:
    """Return the one line of a log that says why its process failed; where there is none, how it ended."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return why_ended(lines, code)


def _environment(workers: int) -> Mapping[str, str]:
    """Return the environment of a process: where several run at once, its share of the processors, unless that is set."""
    if workers == 1 or THREADS in os.environ:
        return os.environ
    return os.environ | {THREADS: str(max(1, (os.cpu_count() or 1) // workers))}


@contextmanager
def _signals() -> Iterator[None]:
    """Let SIGTERM end the sweep as Ctrl-C does."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def left_to_do(plan: SweepPlan, journal: Journal) -> Sequence[Step]:
    """Return the steps that are not done, without adapters that are there for merges only and whose merges are done."""
    left = {step.name for step in plan.steps if journal.standing(step).state != "done"}
    return [
        step
        for step in plan.steps
        if step.name in left and (step.evaluated or any(other.name in left for other in plan.needed_by(step)))
    ]
