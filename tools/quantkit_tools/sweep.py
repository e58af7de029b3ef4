"""Methods × adapters × merge policies × seeds from one file: plan, train, merge, evaluate, report. (`quantkit sweep FILE`)

The same command again goes on where it was, after a failure, a signal or a crash. What it runs are the other verbs, each in
a process of its own; what they make are ordinary artifacts of the registry, so nothing about them depends on the sweep.
"""

import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from quantkit import console
from quantkit.errors import UsageError, VerificationError
from quantkit.layout import counted
from quantkit_tools.small_flags import read_small_flags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quantkit_tools.sweep_journal import Journal
    from quantkit_tools.sweep_outlook import Expected
    from quantkit_tools.sweep_planning import SweepPlan
    from quantkit_tools.sweep_running import Outcome

SCHEMA_VERSION = 1
INTERRUPTED = 130
WAY_OUT = "remove the artifact, set another output_dir in base, or put the setting under vary, so that names carry it"


@dataclass(frozen=True)
class Flags:
    """Run every combination of a sweep file, evaluate all of them, and put the results side by side."""

    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """JSON, TOML or YAML with the sections base, vary, exclude and evaluate; Fine-tuning/sweep.yaml is an example."""
    dry_run: bool = False
    """Print what would run, what is refused and what it takes, and stop."""
    max_workers: int = 1
    """Processes that train or merge at the same time."""
    emit: Literal["commands", "slurm"] | None = None
    """Run nothing; print what is left as command lines, one job per line, or as an sbatch array script."""
    json: bool = False
    """Print one JSON object; human text goes to stderr."""


def main(arguments: list[str]) -> int:
    """Run `quantkit sweep`; exit 1 where a step failed, 3 where an artifact is marked, 130 where it was interrupted."""
    flags = read_small_flags(Flags, "sweep", arguments)
    if flags.max_workers < 1:
        raise UsageError(f"max_workers is {flags.max_workers}; it must be at least 1")
    if flags.json or flags.emit:
        console.use_stderr()
    from quantkit.methods import installed_methods
    from quantkit.sweeping import read_sweep
    from quantkit_tools.sweep_evaluation import evaluation_words
    from quantkit_tools.sweep_journal import Journal
    from quantkit_tools.sweep_outlook import forecasts
    from quantkit_tools.sweep_planning import plan_sweep
    from quantkit_tools.sweep_shared import refuse_hopeless

    sweep = read_sweep(flags.file)
    words = evaluation_words(sweep)
    methods = installed_methods()
    plan = plan_sweep(sweep, methods)
    journal = Journal(plan.work, plan.root)
    forecast = forecasts(plan, refuse_hopeless(plan, journal, methods), methods)
    announce(plan, journal, forecast)
    if flags.dry_run:
        if flags.json:
            console.emit_json(described(plan, journal, forecast))
        return 0
    if flags.emit:
        return emit(flags, plan, journal)
    return carry_out(flags, plan, journal, words, forecast)


def carry_out(
    flags: Flags, plan: "SweepPlan", journal: "Journal", words: list[str] | None, forecast: "Mapping[str, Expected]"
) -> int:
    """Run what is left, evaluate what is there, report; return the exit code."""
    from quantkit_tools.sweep_commands import write_runs
    from quantkit_tools.sweep_evaluation import evaluate, report
    from quantkit_tools.sweep_running import Runner

    write_runs(plan)
    outcome = Runner(plan, journal, workers=flags.max_workers).run()
    summarize(plan, outcome)
    code, page = 0, None
    if words is not None and outcome.done and not outcome.interrupted:
        code = evaluate(plan, outcome, words, json=flags.json)
        page = report(plan, outcome) if code != INTERRUPTED else None
    if outcome.interrupted or code == INTERRUPTED:
        console.say(f"interrupted; quantkit sweep {flags.file} goes on")
        code = INTERRUPTED
    else:
        code = max(code, 1 if outcome.failed else 0, VerificationError.exit_code if outcome.marked else 0)
    if flags.json:
        said = {"done": sorted(outcome.done), "failed": outcome.failed, "marked": outcome.marked, "report": page}
        console.emit_json(described(plan, journal, forecast) | said | {"exit_code": code})
    return code


def announce(plan: "SweepPlan", journal: "Journal", forecast: "Mapping[str, Expected]") -> None:
    """Print the steps in their order, what they take, and what is left out."""
    from quantkit_tools.sweep_outlook import Expected, expected

    rows = []
    left_s: list[float | None] = []
    blocked = 0
    shortages: dict[str, list[str]] = {}
    rates: dict[str, None] = {}
    for number, step in enumerate(plan.steps, start=1):
        standing = journal.standing(step)
        takes = Expected() if standing.state == "done" else expected(step, journal, forecast)
        if takes.refused and standing.state == "to do":
            shortages.setdefault(takes.refused, []).append(step.name)
        rates |= {takes.rate: None} if takes.rate else {}
        left_s += [takes.time_s] if standing.state == "to do" else []
        blocked += standing.state == "in the way"
        state = f"{standing.state}\n{standing.detail}" if standing.detail else standing.state
        time = None if takes.time_s is None else console.format_duration(takes.time_s)
        disk = console.format_bytes(step.disk_bytes)
        memory = None if takes.memory_bytes is None else console.format_bytes(takes.memory_bytes)
        rows.append([number, step.kind, step.name, step.label, disk, memory, time, state])
    columns: list[str | console.Column] = [
        console.Column("#", "right"),
        "step",
        "artifact",
        console.Column("combination", priority=3),
        console.Column("disk", "right", priority=1),
        console.Column("memory", "right", priority=2),
        console.Column("time", "right", priority=1),
        "state",
    ]
    known = [time for time in left_s if time is not None]
    total = console.format_duration(sum(known)) if known else "unknown: no run here has ended yet"
    unknown = f", without {counted(len(left_s) - len(known), 'step')} never measured" if 0 < len(known) < len(left_s) else ""
    caption = (
        f"about {console.format_bytes(plan.disk_bytes)} on disk under {plan.root}; time left, one at a time: {total}{unknown}"
    )
    lines = [caption] if left_s else [] if blocked else ["nothing is left to run"]
    lines += [f"{blocked} in the way: {WAY_OUT}"] if blocked else []
    console.table(f"Sweep {plan.sweep.path.stem}", columns, rows, caption="\n".join(lines))
    if plan.refused:
        console.table("Refused", ["combination", "why"], [[item.label, item.reason] for item in plan.refused])
    for note in plan.notes:
        console.say(note)
    for rate in rates:
        console.say(f"times of trainings are forecast by {rate}")
    for text, names in shortages.items():
        console.warn(f"{', '.join(names)}: {text}")
    if plan.excluded:
        console.say(f"{plan.excluded} left out by exclude")


def described(plan: "SweepPlan", journal: "Journal", forecast: "Mapping[str, Expected]") -> dict[str, Any]:
    """Return the plan as plain JSON data."""
    from quantkit_tools.sweep_outlook import expected

    steps = []
    for step in plan.steps:
        standing, takes = journal.standing(step), expected(step, journal, forecast)
        steps.append(
            {
                "name": step.name,
                "kind": step.kind,
                "combination": step.label,
                "artifact": str(step.target),
                "needs": step.needs,
                "evaluated": step.evaluated,
                "disk_bytes": step.disk_bytes,
                "memory_bytes": takes.memory_bytes,
                "measured_memory_bytes": journal.expected(step)[1],
                "time_s": takes.time_s,
                "state": standing.state,
                "detail": standing.detail or None,
            }
        )
    refused = [{"combination": item.label, "reason": item.reason} for item in plan.refused]
    said = {"schema_version": SCHEMA_VERSION, "root": str(plan.root), "steps": steps, "refused": refused}
    return said | {"excluded": plan.excluded, "notes": list(plan.notes), "disk_bytes": plan.disk_bytes}


def emit(flags: Flags, plan: "SweepPlan", journal: "Journal") -> int:
    """Print the jobs that are left, for a scheduler or a shell, without those that something is in the way of."""
    from quantkit_tools.sweep_commands import jobs, slurm_script, write_runs
    from quantkit_tools.sweep_running import left_to_do

    left = left_to_do(plan, journal)
    blocked = {step.name for step in left if journal.standing(step).state == "in the way"}
    free = {step.name for step in left if not {step.name, step.needs} & blocked}
    left = [step for step in left if step.name in free and (step.evaluated or free & {o.name for o in plan.needed_by(step)})]
    write_runs(plan)
    again = shlex.join(["quantkit", "sweep", flags.file])
    if not left:
        console.say(f"nothing {'can run' if blocked else 'is left to run'}; {again} evaluates and reports")
    lines = jobs(plan, left)
    if flags.json:
        console.emit_json({"schema_version": SCHEMA_VERSION, "jobs": lines})
    elif lines:
        print(slurm_script(plan, left, again) if flags.emit == "slurm" else "\n".join(lines))
    return 0


def summarize(plan: "SweepPlan", outcome: "Outcome") -> None:
    """Print what failed and what is marked."""
    for name, error in outcome.failed.items():
        console.warn(f"{name} was not made: {error}")
    for name, reason in outcome.marked.items():
        console.warn(f"{name} is marked: {reason}")
    console.say(f"{len(outcome.done)} of {len(plan.steps)} steps are done", style="bold")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
