"""From which checkpoint may a run go on?

A checkpoint counts when its manifest verifies, it holds all parts of the state of one and the same step, and its name says
that step; after loading, the hash of the trained weights must be the recorded one. Taking the newest folder by its number, the
usual way, trains on from half-written states without a word. Whether it is the same run is `quantkit.training.identity`'s.
"""

import hashlib
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from quantkit.console import say, warn
from quantkit.errors import QuantkitError, UsageError, VerificationError, WriteError
from quantkit.files import read_json, remove_folder, remove_leftovers, verify_manifest
from quantkit.files.renaming import rename_new
from quantkit.layout import counted
from quantkit.spec import read_fields

FACTS = "quantkit_training.json"
PARTS = (FACTS, "trainer_state.json", "optimizer.pt", "scheduler.pt")
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
BROKEN = "broken-"


@dataclass(kw_only=True)
class RunState:
    """What a checkpoint says about the run beside model, optimizer, scheduler and random states."""

    step: int = 0
    total_steps: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """Fingerprints of rows, chat template and base, kind of device, number of processes."""
    versions: dict[str, str] = field(default_factory=dict)
    accepted: list[dict[str, Any]] = field(default_factory=list)
    """In what resumed parts of the run differ from those before, as was accepted: field, was, is, from_step."""
    arithmetic_dtype: str = "float32"
    recompute: str | None = None
    """What the backward pass computes again, as `quantkit.recompute` writes it; None: not recorded."""
    losses: list[float] = field(default_factory=list)
    duration_s: float = 0.0
    tokens: int = 0
    response_tokens: int = 0
    evaluation_loss_before: float | None = None
    evaluation_rows: str = ""
    """Fingerprint of the rows it was measured on."""
    weights_sha256: str = ""
    schema_version: int = 2

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `read` is its inverse."""
        return asdict(self)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the state of a verified checkpoint; raises `UsageError` when it is not one of ours."""
        data = read_json(folder / FACTS)
        if isinstance(data, dict) and data.get("schema_version") != cls.schema_version:
            raise UsageError(
                f"{folder / FACTS}: schema_version is {data.get('schema_version')!r}, this quantkit reads"
                f" {cls.schema_version}; go on with the version that wrote it, or start a new run"
            )
        return read_fields(cls, data, where=str(folder / FACTS))


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, good or not, newest first."""
    numbered = [
        (int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    return [path for _, path in sorted(numbered, reverse=True)]


def find_checkpoint(folder: Path, resume: bool | str, *, overwrite: bool = False, first: bool = True) -> Path | None:
    """Return the checkpoint to go on from, None to start at step 0; says what was skipped and what that costs.

    Only the `first` of several processes prints, and moves aside what is not whole.

    Raises:
        UsageError: checkpoints are there and the run neither resumes nor overwrites, the named folder is missing, or
            `folder` cannot be written.
        VerificationError: no checkpoint, or not the one that was named, is whole.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror or error}") from None
    if first:
        remove_leftovers(folder)
    if isinstance(resume, str):
        if not Path(resume).is_dir():
            raise UsageError(f"resume_from_checkpoint: {resume}: no such folder")
        _check_whole(Path(resume))
        return Path(resume)
    there = checkpoint_folders(folder)
    if not resume:
        if there and not overwrite:
            raise UsageError(
                f"{folder}: holds {there[0].name} of an earlier run; set resume_from_checkpoint to go on from it,"
                " or overwrite to start again"
            )
        return None
    if there:
        return _newest_whole(there, say_so=first)
    if first:
        say(f"no checkpoint in {folder}; starting at step 0")
    return None


def clear_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of an earlier run, whole or not."""
    for path in [*checkpoint_folders(folder), *folder.glob(f"{BROKEN}checkpoint-*")]:
        remove_folder(path)


def step_of(checkpoint: Path) -> int:
    """Return the step in a checkpoint's name, 0 where there is none."""
    match = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(match[1]) if match else 0


def weights_sha256(model: Any) -> str:
    """Return one hash over names, types, shapes and bytes of all trainable parameters."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
            whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter  # in parts, over processes
            flat = whole.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def rotate(folder: Path, keep: int, newest: int) -> None:
    """Remove all but `keep` of the checkpoints up to step `newest`, which was committed just now.

    Later ones are from before the run went back to an earlier step; counting them would remove what was saved since.
    """
    for path in [path for path in checkpoint_folders(folder) if step_of(path) <= newest][keep:]:
        try:
            remove_folder(path)
        except WriteError as error:
            warn(f"an old checkpoint stays: {error}")


def _newest_whole(there: list[Path], *, say_so: bool) -> Path:
    faults = []
    for path in there:
        try:
            _check_whole(path)
        except QuantkitError as error:
            faults.append(str(error))
            continue
        if say_so:
            lost = max(map(_steps_in, there)) - step_of(path)
            for broken, fault in zip(there, faults, strict=False):
                warn(f"skipped a checkpoint that is not whole: {fault}; it is now {_aside(broken).name}")
            say(f"going on from {path}" + (f"; {counted(lost, 'step')} lost, done again" if lost else ""))
        return path
    raise VerificationError(
        f"{there[0].parent}: no checkpoint is whole: {' | '.join(faults)}. To start again, remove the folder"
    )


def _check_whole(folder: Path) -> None:
    verify_manifest(folder)
    missing = [name for name in PARTS if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in WEIGHTS):
        missing.append(WEIGHTS[0])
    if FACTS not in missing:
        state = RunState.read(folder)
        processes = state.facts.get("processes")
        if not isinstance(processes, int):
            raise VerificationError(f"{folder}: {FACTS} says processes {processes!r}; not a checkpoint of a run")
        states = [f"rng_state_{rank}.pth" for rank in range(processes)] if processes > 1 else ["rng_state.pth"]
        missing += [name for name in states if not (folder / name).is_file()]
    if missing:
        raise VerificationError(f"{folder}: {', '.join(missing)} missing; not a checkpoint of a run")
    inner = read_json(folder / "trainer_state.json")
    own = inner.get("global_step") if isinstance(inner, dict) else None
    steps = {FACTS: state.step, f"{FACTS} (losses)": len(state.losses), "trainer_state.json": own}
    if match := re.fullmatch(r"checkpoint-(\d+)", folder.name):
        steps["the folder's name"] = int(match[1])
    if len(set(steps.values())) > 1:
        said = ", ".join(f"{where} says step {step}" for where, step in steps.items())
        raise VerificationError(f"{folder}: its parts are not of one step: {said}")


def _steps_in(folder: Path) -> int:
    """Return how many steps a checkpoint, whole or not, held: what it says itself, else what its name says."""
    try:
        return RunState.read(folder).step
    except QuantkitError:
        return step_of(folder)


def _aside(folder: Path) -> Path:
    """Rename a checkpoint that is not whole, so that it is neither tried again nor counted as one that is kept.

    Raises:
        WriteError: it cannot be renamed.
    """
    target = folder.with_name(BROKEN + folder.name)
    if target.exists():
        remove_folder(target)
    try:
        rename_new(folder, target)
    except OSError as error:
        raise WriteError.of(error, f"{folder}: could not be renamed", "it is as it was") from error
    return target
