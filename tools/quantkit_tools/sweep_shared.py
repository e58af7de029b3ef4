"""What can no run of a sweep get past, because all share it? Found once, before the first of them starts.

Whether artifacts can be written, the model's folder, and the rows with what preflight says of them are looked at once for all
runs that have them in common. Left to the runs, each would start, read and fail alike, and the reason would stand in as many
logs. Where runs differ in them, those that can work do, and the others are listed as refused.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.config import RunConfig
from quantkit.doctor.places import read_places
from quantkit.errors import QuantkitError, UsageError
from quantkit.methods import Methods
from quantkit_tools.sweep_journal import Journal
from quantkit_tools.sweep_planning import Refused, SweepPlan
from quantkit_tools.sweep_running import left_to_do

if TYPE_CHECKING:
    from quantkit.data import PreparedData

MODEL = ("model_name_or_path", "revision", "trust_remote_code")
ROWS = (
    *MODEL,
    *("dataset_name", "eval_dataset_name", "system_prompt", "trunc_train", "max_length", "on_bad_rows", "preflight", "packing"),
    *("per_device_train_batch_size", "gradient_accumulation_steps"),
)
"""Settings that decide what is read, and what preflight says of it."""


def refuse_hopeless(plan: SweepPlan, journal: Journal, methods: Methods) -> "dict[str, PreparedData]":
    """Take steps out of a plan whose model or rows cannot be trained on, and say why; return name → rows of the trainings left.

    Raises:
        UsageError: that is all trainings, or their artifacts cannot be written; each setting with its reason.
    """
    left = [step for step in left_to_do(plan, journal) if step.kind == "train" and journal.standing(step).state == "to do"]
    if not left:
        return {}
    seen: dict[tuple[Any, ...], str | PreparedData | None] = {}
    faults = {step.name: text for step in left if (text := _fault(step.config, methods, seen))}
    trainings = [step for step in plan.steps if step.kind == "train" and step.config.dataset_name is not None]
    said = [] if read_places(plan.root)[0].writable else [f"output_dir {plan.root}: nothing can be written there"]
    if trainings and all(step.name in faults for step in trainings):
        said += dict.fromkeys(faults.values())
    if said:
        raise UsageError(f"{plan.sweep.path}: no run can start: {'; '.join(said)}")
    _take_out(plan, faults)
    found = {step.name: seen.get(_key(step.config, ROWS)) for step in left if step.name not in faults}
    return {name: rows for name, rows in found.items() if rows is not None and not isinstance(rows, str)}


def _fault(config: RunConfig, methods: Methods, seen: "dict[tuple[Any, ...], str | PreparedData | None]") -> str:
    """Return which setting of a run has which fault; faults or rows that runs have in common are kept in `seen`."""
    from quantkit.modeling import refuse_unreadable

    def weights() -> None:
        refuse_unreadable(Path(config.model_name_or_path).expanduser())

    def rows() -> "PreparedData | None":
        return _read(config, methods)

    for names, field, look in ((MODEL, MODEL[0], weights), (ROWS, "dataset_name", rows)):
        key = _key(config, names)
        if key not in seen:
            try:
                seen[key] = look()
            except QuantkitError as error:
                seen[key] = f"{field} {getattr(config, field)}: {error}"
        if isinstance(fault := seen[key], str):
            return fault
    return ""


def _key(config: RunConfig, names: tuple[str, ...]) -> tuple[Any, ...]:
    return (names, *(repr(getattr(config, name)) for name in names))


def _read(config: RunConfig, methods: Methods) -> "PreparedData | None":
    """Read and check a run's rows as the run itself will, and return them; print what is noticed."""
    from quantkit_tools import stages
    from quantkit_tools.planning import plan_run

    if config.dataset_name is None:
        return None
    run = plan_run(config, methods)
    return stages.prepare_rows(run, stages.load_tokenizer(run))


def _take_out(plan: SweepPlan, faults: Mapping[str, str]) -> None:
    """Move steps, and the merges of their adapters, to what is refused."""
    gone = {step.name: faults.get(step.name) or faults.get(str(step.needs)) for step in plan.steps}
    plan.refused += [Refused(step.label, str(gone[step.name])) for step in plan.steps if gone[step.name] and step.evaluated]
    heirs: dict[str, str] = {}
    kept = []
    for step in plan.steps:
        if gone[step.name]:
            continue
        if step.after is not None and gone.get(step.after):  # the first of those left makes the base for them
            heir = heirs.setdefault(step.after, step.name)
            kept.append(replace(step, after=None if heir == step.name else heir))
        else:
            kept.append(step)
    plan.steps[:] = kept
