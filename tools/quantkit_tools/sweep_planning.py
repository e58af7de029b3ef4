"""What will a sweep do, in which order, under which names, and what is refused? Known before any weights are read.

An adapter that several merge policies ask for is trained once and kept; each merge is a step of its own. What a method
refuses is listed with its reason: a table with silent gaps would be read as "not better", where it means "not possible".
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from quantkit.config import RunConfig
from quantkit.errors import UsageError
from quantkit.methods import Methods
from quantkit.sweeping import KEPT, Combination, Sweep
from quantkit_registry.records import ArtifactRecord, BaseReference
from quantkit_registry.store import root_of
from quantkit_tools.merging.planning import target_of
from quantkit_tools.planning import RunPlan, plan_run
from quantkit_tools.sweep_costs import Costs

WHOLE = "all weights"
"""Stands for a merge policy where no adapter is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One process: a run of `quantkit train`, or a merge of the adapter that one has kept."""

    kind: Literal["train", "merge"]
    name: str
    """Name of the artifact it makes, and of its run in the run file."""
    target: Path
    config: RunConfig
    """Settings of the training; of a merge, those its adapter was trained with."""
    policy: str
    label: str
    needs: str | None = None
    """Name of the adapter it folds in."""
    after: str | None = None
    """Name of an earlier step that makes the quantized base both train on; it may fail all the same."""
    evaluated: bool = True
    """Whether it was asked for itself; an adapter may be there for its merges only."""
    disk_bytes: int = 0
    """About what it leaves on disk."""
    memory_bytes: int | None = None
    """What comparing a merge takes at most; None: `sweep_outlook` tells it, or nothing does before it was measured."""
    run: RunPlan | None = field(default=None, compare=False, repr=False)
    """Of a training: what it will do."""

    @property
    def asks_for(self) -> dict[str, Any]:
        """Return what decides the artifact's content, for the journal."""
        said = {"kind": self.kind, "settings": self.config.fingerprint, "policy": self.policy}
        return said | ({"adapter": self.needs} if self.needs else {})


@dataclass(frozen=True, slots=True)
class Refused:
    """A combination that cannot run, and who says so why."""

    label: str
    reason: str


@dataclass(slots=True)
class SweepPlan:
    """Steps in an order in which each comes after what it needs, and all that is left out."""

    sweep: Sweep
    root: Path
    """The registry folder that all artifacts appear under."""
    steps: list[Step] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    excluded: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def work(self) -> Path:
        """Folder of run file, journal, logs and locks; the registry does not list it."""
        return self.root / ".sweeps" / self.sweep.path.stem

    @property
    def disk_bytes(self) -> int:
        """Return about what all steps leave on disk."""
        return sum(step.disk_bytes for step in self.steps)

    def needed_by(self, step: Step) -> list[Step]:
        """Return the merges of a step's adapter."""
        return [other for other in self.steps if other.needs == step.name]


def plan_sweep(sweep: Sweep, methods: Methods) -> SweepPlan:
    """Decide steps, names and refusals.

    Raises:
        UsageError: the file has faults, or not one combination can run; the text names the first reasons.
    """
    combinations, excluded = sweep.combinations(methods)
    if not combinations:
        raise UsageError(f"{sweep.path}: exclude leaves nothing to run")
    roots = {item.config.output_dir for item in combinations}
    plan = SweepPlan(sweep, root_of(roots.pop()), excluded=excluded)
    planner = _Planner(plan, methods)
    if sweep.wants_base:
        planner.add_snapshot(combinations[0].config)
    planner.add_all(combinations)
    if not plan.steps:
        reasons = "; ".join(dict.fromkeys(item.reason for item in plan.refused))
        raise UsageError(f"{sweep.path}: no combination can run: {reasons}")
    return plan


@dataclass(frozen=True, slots=True)
class _Row:
    """What one combination trains, and what it makes of it."""

    label: str
    kept: RunPlan
    """The training, its adapter kept."""
    policies: dict[str, tuple[str, RunPlan]]
    """Name of the artifact, or `KEPT`, → merge policy and its run."""


class _Planner:
    """Adds combinations to a plan; each artifact once."""

    def __init__(self, plan: SweepPlan, methods: Methods) -> None:
        self._plan, self._methods = plan, methods
        self._costs = Costs()
        self._bases: dict[str, str] = {}

    def add_snapshot(self, config: RunConfig) -> None:
        """Add the base itself, untrained, to compare with."""
        bare = config.with_changes(
            dataset_name=None, eval_dataset_name=None, quant_method="NoQuant", method_options={}, peft_config="NoPeft"
        )
        bare = bare.with_changes(name_settings=(), use_rslora=False, init_lora_weights="default", merge="dequantized")
        run = plan_run(bare, self._methods)
        self._add(self._train_step(run, "the base itself", WHOLE))

    def add_all(self, combinations: Sequence[Combination]) -> None:
        """Add the steps of all combinations, or say why not.

        One policy alone is a merge at the end of its run; several share a kept adapter, also where two combinations that train
        the same ask for them.
        """
        rows = [row for item in combinations if (row := self._row(item)) is not None]
        wanted: dict[str, set[str]] = {}
        for row in rows:
            wanted.setdefault(row.kept.config.fingerprint, set()).update(row.policies)
        for row in rows:
            names = wanted[row.kept.config.fingerprint]
            if row.kept.kind == "model":
                self._add(self._train_step(row.kept, row.label, WHOLE))
            elif names in (set(), {KEPT}) or len(names) > 1:
                self._add_shared(row)
            else:
                for policy, run in row.policies.values():
                    self._add(self._train_step(run, f"{row.label}, {policy}", policy))

    def _row(self, combination: Combination) -> _Row | None:
        """Return what one combination trains and makes of it; None where it cannot run, which is noted."""
        label = combination.label
        try:
            kept = self._run(combination.config, KEPT)
            self._costs.check_base(kept)
        except UsageError as error:
            self._refuse(label, error)
            return None
        if kept.config.peft_config != combination.config.peft_config:
            said = " ".join(kept.plan.notes) or f"{kept.plan.method} trains {kept.config.peft_config}"
            self._plan.notes.append(f"{label}: {said}")
        return _Row(label, kept, {} if kept.kind == "model" else self._possible(combination))

    def _possible(self, combination: Combination) -> dict[str, tuple[str, RunPlan]]:
        """Return name of the artifact, or `KEPT`, → policy and run."""
        found: dict[str, tuple[str, RunPlan]] = {}
        for policy in combination.policies:
            label = f"{combination.label}, {policy}"
            try:
                run = self._run(combination.config, policy)
            except UsageError as error:
                self._refuse(label, error)
                continue
            name = policy if policy == KEPT else run.name
            if name in found:
                self._plan.notes.append(f"{label}: the same as {found[name][0]}, the base is dense")
            else:
                found[name] = (policy, run)
        return found

    def _add_shared(self, row: _Row) -> None:
        """Add one training, whose adapter is kept, and a merge for each policy that wants one."""
        kept, label = row.kept, row.label
        if not row.policies:
            return
        asked = KEPT in row.policies
        trained = self._train_step(kept, f"{label}, {KEPT}", KEPT)
        if not self._add(replace(trained, evaluated=asked)):
            return
        record = _record_of(kept)
        for policy, run in row.policies.values():
            if policy == KEPT:
                continue
            dtype = kept.config.save_dtype if policy != "requantized" else kept.base_dtype
            target, name = target_of(self._plan.root, trained.target, record, policy, dtype)
            step = Step(
                kind="merge",
                name=name,
                target=target,
                config=trained.config,
                policy=policy,
                label=f"{label}, {policy}",
                needs=trained.name,
                disk_bytes=self._costs.model_bytes(run),
                memory_bytes=4 * run.parameters,
            )
            self._add(step)

    def _train_step(self, run: RunPlan, label: str, policy: str) -> Step:
        base = self._costs.base_key(run)
        first = self._bases.setdefault(base, run.name) if base else None
        shared = first is not None and first != run.name
        return Step(
            kind="train",
            name=run.name,
            target=run.target,
            config=run.config,
            run=run,
            policy=policy,
            label=label,
            after=first if shared else None,
            disk_bytes=self._costs.train_bytes(run, with_base=base is not None and not shared),
        )

    def _add(self, step: Step) -> bool:
        """Add a step, once where two combinations ask for the same; return whether its name stands for what it asks for."""
        steps = self._plan.steps
        number = next((at for at, item in enumerate(steps) if item.name.casefold() == step.name.casefold()), len(steps))
        if number == len(steps):
            steps.append(step)
            return True
        other = steps[number]
        same = other.asks_for == step.asks_for
        if same:
            steps[number] = replace(other, evaluated=other.evaluated or step.evaluated)
            self._plan.notes.append(f"{step.label}: the same as {other.label}, which runs once")
        else:
            differing = ", ".join(_differing(other.config, step.config)) or "their merge policy"
            self._refuse(
                step.label,
                f"{step.name} is also the name of: {other.label}; they differ in {differing}, which name_settings in base can"
                " put into names",
            )
        return same

    def _run(self, config: RunConfig, policy: str) -> RunPlan:
        merges = policy != KEPT
        return plan_run(config.with_changes(merge_after_train=merges, merge=policy if merges else "dequantized"), self._methods)

    def _refuse(self, label: str, error: object) -> None:
        self._plan.refused.append(Refused(label, str(error)))


def _record_of(run: RunPlan) -> ArtifactRecord:
    """Return the record that a kept adapter will have, as far as its merges' names depend on it."""
    return ArtifactRecord(
        name=run.name,
        kind="adapter",
        quantization=run.stored,
        recipe=run.plan,
        base=BaseReference(name_or_path=run.base),
        adapter=run.plan.adapter,
    )


def _differing(one: RunConfig, other: RunConfig) -> list[str]:
    first, second = ({**item.to_dict(), **item.method_options} for item in (one, other))
    left_out = {"method_options", "name_settings"}
    return sorted(name for name in {*first, *second} - left_out if first.get(name) != second.get(name))
