"""Which artifacts of the registry have no result yet, why, and who is at work on them? (`quantkit evaluate --pending`)

A result counts when it belongs to this content, these rows and these settings; a file that merely exists does not. What is
left is decided again under a lock by the process that is to do it, so that two runs at once, or one after a killed one, share
the work and never repeat it. A list of finished work beside the results would be a second truth that a crash leaves wrong.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quantkit import console
from quantkit.errors import UsageError, VerificationError
from quantkit.evaluation.results import ArtifactResult, TaskResult
from quantkit.layout import counted
from quantkit.locks import is_free, wait_until_free
from quantkit_registry.store import Artifact, Registry
from quantkit_tools.evaluation.comparing import SCHEMA_VERSION, check_baseline, show
from quantkit_tools.evaluation.counting import lock_path, reference_of, why_pending
from quantkit_tools.evaluation.flags import Flags
from quantkit_tools.evaluation.groups import Failure, groups_of, in_own_process
from quantkit_tools.evaluation.scoring import tasks_of
from quantkit_tools.verdict import failed_gate

if TYPE_CHECKING:
    from quantkit.evaluation.tasks import Task

TURNS = 3
"""How often an artifact that others were at is looked at again."""


@dataclass(frozen=True, slots=True)
class Pending:
    """An artifact, and why each task that it lacks a result for is to be done."""

    artifact: Artifact
    reasons: dict[str, str]
    """Task to reason."""

    @property
    def path(self) -> str:
        """Return the folder as the evaluation is to be given it."""
        return str(self.artifact.path)


def evaluate_pending(flags: Flags) -> int:
    """Evaluate what is left; exit 3 where an artifact failed its gate or answers nothing sensible, else as the worst failure.

    Artifacts that another process is at are waited for in the end, and taken over where it died.
    """
    _refuse_explicit(flags)
    work = Work(flags)
    if not work.artifacts:
        console.say(f"{work.registry.root.absolute()}: no artifacts of ours are here, so nothing is to be evaluated")
    check_baseline(flags.baseline, [str(artifact.path) for artifact in work.artifacts])
    if flags.dry_run:
        _announce(work)
        return 0
    return _finish(work, [failure for failures in work.each_group() for failure in failures])


class Work:
    """The artifacts in question, and what is left to do about them now."""

    def __init__(self, flags: Flags) -> None:
        self.flags = flags
        self.registry = Registry(flags.registry)
        self.artifacts = artifacts_of(self.registry, flags.paths)
        self._tasks: dict[str | None, list[Task]] = {}

    def tasks(self, artifact: Artifact) -> "list[Task]":
        """Return what an artifact is asked; rows are read once for each system prompt."""
        data = artifact.record.data if artifact.record is not None else {}
        prompt = data.get("system_prompt")
        key = prompt if isinstance(prompt, str) else None
        if key not in self._tasks:
            self._tasks[key] = tasks_of(self.flags, key)
        return self._tasks[key]

    def pending(self, artifact: Artifact) -> Pending | None:
        """Return what an artifact lacks; None where nothing."""
        found = self.registry.results(str(artifact.hash))
        reference = reference_of(self.flags, self.registry, artifact)
        why = {task.name: why_pending(found.get(task.name), task, self.flags, reference) for task in self.tasks(artifact)}
        reasons = {name: reason for name, reason in why.items() if reason}
        return Pending(artifact, reasons) if reasons else None

    def all_pending(self) -> list[Pending]:
        """Return every artifact that lacks something, in the order of the registry."""
        return [item for artifact in self.artifacts if (item := self.pending(artifact)) is not None]

    def each_group(self) -> Iterator[list[Failure]]:
        """Evaluate group by group, first what nobody is at; yield each group's failures.

        What is left after each artifact had its turn was somebody else's: it is waited for, then looked at again.
        """
        by_path = {item.path: item.artifact for item in self.all_pending()}
        failed: set[str] = set()
        for paths in groups_of(replace(self.flags, paths=tuple(by_path))):
            free = tuple(path for path in paths if self._is_free(by_path[path]))
            if free:
                yield (failures := self._evaluate(free))
                failed |= {failure["path"] for failure in failures}
        for path in [path for path in by_path if path not in failed]:
            yield self._after_others(by_path[path])

    def _after_others(self, artifact: Artifact) -> list[Failure]:
        """Wait for whoever is at an artifact, and do what is left then."""
        failed: list[Failure] = []
        for _ in range(TURNS):
            if failed or (item := self.pending(artifact)) is None:
                break
            console.say(f"{artifact.name}: another process is at it; waiting")
            for task in item.reasons:
                wait_until_free(lock_path(self.registry, str(artifact.hash), task))
            if self.pending(artifact) is not None:
                failed = self._evaluate((item.path,))
        return failed

    def _is_free(self, artifact: Artifact) -> bool:
        """Whether an artifact lacks something that no other process is at."""
        item = self.pending(artifact)
        return item is not None and any(is_free(lock_path(self.registry, str(artifact.hash), task)) for task in item.reasons)

    def _evaluate(self, paths: tuple[str, ...]) -> list[Failure]:
        _, failed = in_own_process(self.flags, paths)
        for failure in failed:
            console.warn(f"{failure['path']} was not evaluated: {failure['error']}")
        return failed

    def filed(self) -> list[ArtifactResult]:
        """Return the results that count, old and new, for a table."""
        return [found for artifact in self.artifacts if (found := self._filed(artifact)) is not None]

    def _filed(self, artifact: Artifact) -> ArtifactResult | None:
        found = self.registry.results(str(artifact.hash))
        lacking = self.pending(artifact)
        names = [task.name for task in self.tasks(artifact) if lacking is None or task.name not in lacking.reasons]
        if not names:
            return None
        about = {key: value for key, value in found[names[0]]["artifact"].items() if key not in ("results", "path")}
        whole = ArtifactResult.from_dict(about | {"path": str(artifact.path), "results": []})
        return replace(whole, results=[TaskResult.from_dict(found[name]) for name in names])


def artifacts_of(registry: Registry, paths: Sequence[str]) -> list[Artifact]:
    """Return the artifacts that are named, or all committed ones; of several folders with the same content the first.

    Raises:
        UsageError: nothing of that name is there, or it is no artifact of ours, whose results are filed by its hash.
    """
    found = [registry.find(path) for path in paths] if paths else registry.artifacts()
    for artifact in found:
        if artifact.hash is None or artifact.record is None:
            said = artifact.fault or "was not made by quantkit"
            raise UsageError(f"{artifact.path}: {said}; --pending is for artifacts of ours; leave it out to evaluate this")
    by_hash: dict[str | None, Artifact] = {}
    for artifact in found:
        by_hash.setdefault(artifact.hash, artifact)
    return list(by_hash.values())


def failed_gates(work: Work, done: Sequence[ArtifactResult]) -> dict[str, str]:
    """Return artifact → what its gate or its answers say against it."""
    faults = {artifact.name: reasons for artifact in work.artifacts if (reasons := failed_gate(artifact))}
    for artifact in done:
        marks = {f"{result.task}: {mark}" for result in artifact.results for mark in result.degenerate}
        if marks:
            faults[artifact.name] = "; ".join([*filter(None, [faults.get(artifact.name)]), *sorted(marks)])
    return faults


def _finish(work: Work, failed: list[Failure]) -> int:
    done = work.filed()
    compared = show(done, baseline=work.flags.baseline)
    faults = failed_gates(work, done)
    for name, reasons in faults.items():
        console.warn(f"{name} failed its gates: {reasons}")
    missing = [item for item in work.all_pending() if item.path not in {failure["path"] for failure in failed}]
    for item in missing:
        console.warn(f"{item.artifact.name} still lacks {', '.join(item.reasons)}")
    if work.flags.json:
        console.emit_json(
            {
                "schema_version": SCHEMA_VERSION,
                "artifacts": [artifact.to_dict() for artifact in done],
                "failed": failed,
                "failed_gates": faults,
                **compared,
            }
        )
    codes = [int(failure["exit_code"]) for failure in failed] + [1 for _ in missing]
    return max(codes + [VerificationError.exit_code for _ in faults], default=0)


def _announce(work: Work) -> None:
    pending = work.all_pending()
    rows = [[item.artifact.name, task, reason] for item in pending for task, reason in item.reasons.items()]
    lacking = f"{len(pending)} of {counted(len(work.artifacts), 'artifact')} lack a result"
    console.table("Pending", ["artifact", "task", "why"], rows, caption=lacking)
    if work.flags.json:
        listed = [{"name": item.artifact.name, "path": item.path, "tasks": item.reasons} for item in pending]
        console.emit_json({"schema_version": SCHEMA_VERSION, "pending": listed, "artifacts": len(work.artifacts)})


def _refuse_explicit(flags: Flags) -> None:
    for name in ("method", "base"):
        if getattr(flags, name) is not None:
            raise UsageError(f"--{name} says what no file records; --pending is for artifacts that say it themselves")
