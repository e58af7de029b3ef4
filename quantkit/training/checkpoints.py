"""From which checkpoint may a run go on, and is it the same run?

A checkpoint counts when its manifest verifies, it holds all parts of the state, and it was made by a run with the same
settings and rows; after loading, the hash of the trained weights must be the recorded one. Taking the newest folder by its
number, the usual way, trains on from half-written or foreign states without a word.
"""

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from quantkit.console import say, warn
from quantkit.errors import QuantkitError, UsageError, VerificationError
from quantkit.files import read_json, verify_manifest
from quantkit.spec import read_fields

if TYPE_CHECKING:
    from quantkit.config import RunConfig

FACTS = "quantkit_training.json"
PARTS = (FACTS, "trainer_state.json", "optimizer.pt", "scheduler.pt")
FREE_SETTINGS = frozenset(
    {"output_dir", "overwrite", "logging_steps", "save_steps", "save_total_limit", "resume_from_checkpoint", "report_to"}
    | {"eval_dataset_name", "merge_after_train", "save_dtype", "lm_head_dtype", "max_steps", "num_train_epochs", "device"}
    | {"recompute", "gradient_checkpointing", "activation_offloading"}
)
"""Settings a resumed run may change."""
ROWS_OF_A_STEP = ("per_device_train_batch_size", "gradient_accumulation_steps")
"""Settings a resumed run may change as long as their product stays: each step then has the same rows."""


@dataclass(kw_only=True)
class RunState:
    """What a checkpoint says about the run beside model, optimizer, scheduler and random states."""

    step: int = 0
    total_steps: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    """Fingerprint of the rows."""
    arithmetic_dtype: str = "float32"
    losses: list[float] = field(default_factory=list)
    duration_s: float = 0.0
    tokens: int = 0
    response_tokens: int = 0
    evaluation_loss_before: float | None = None
    weights_sha256: str = ""
    processes: int = 1
    schema_version: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `read` is its inverse."""
        return asdict(self)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the state of a verified checkpoint; raises `UsageError` when it is not one of ours."""
        return read_fields(cls, read_json(folder / FACTS), where=str(folder / FACTS))


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, good or not, newest first."""
    numbered = [
        (int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    return [path for _, path in sorted(numbered, reverse=True)]


def find_checkpoint(folder: Path, resume: bool | str, *, overwrite: bool = False, first: bool = True) -> Path | None:
    """Return the checkpoint to go on from, None to start at step 0; says what was skipped and what that costs.

    Only the `first` of several processes prints and removes anything.

    Raises:
        UsageError: checkpoints are there and the run neither resumes nor overwrites, the named folder is missing, or
            `folder` cannot be written.
        VerificationError: no checkpoint, or not the one that was named, is whole.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror or error}") from None
    for leftover in folder.glob(".writing-*") if first else ():
        shutil.rmtree(leftover, ignore_errors=True)
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
        for path in there if first else ():
            shutil.rmtree(path)
        return None
    if there:
        return _newest_whole(there, say_so=first)
    if first:
        say(f"no checkpoint in {folder}; starting at step 0")
    return None


def step_of(checkpoint: Path) -> int:
    """Return the step in a checkpoint's name, 0 where there is none."""
    match = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(match[1]) if match else 0


def check_same_run(state: RunState, config: "RunConfig", data: str, *, where: Path, processes: int = 1) -> None:
    """Check that a run with these settings and rows goes on where the checkpoint's run stopped.

    Raises:
        UsageError: names each setting that differs, or the rows.
    """
    now: Mapping[str, Any] = plain_settings(config)
    different = sorted(key for key in now if key in state.settings and now[key] != state.settings[key])
    if prod(now[key] for key in ROWS_OF_A_STEP) == prod(state.settings.get(key, 0) for key in ROWS_OF_A_STEP):
        different = [key for key in different if key not in ROWS_OF_A_STEP]
    if different:
        pairs = "; ".join(f"{key} was {state.settings[key]!r} and is {now[key]!r}" for key in different)
        raise UsageError(f"{where}: made by another run: {pairs}. Use the same settings, or start a new run")
    if state.processes != processes:
        raise UsageError(
            f"{where}: made by {state.processes} processes, this run has {processes}, so its steps have other rows; start as"
            " many, or start a new run"
        )
    if state.data != data:
        raise UsageError(f"{where}: made on other rows (fingerprint {state.data[:12]}, now {data[:12]}); start a new run")


def plain_settings(config: "RunConfig") -> dict[str, Any]:
    """Return the settings that must not change when a run goes on."""
    return {key: value for key, value in config.to_dict().items() if key not in FREE_SETTINGS}


def weights_sha256(model: Any) -> str:
    """Return one hash over names, types, shapes and bytes of all trainable parameters."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
            flat = parameter.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def rotate(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; called when the newest is committed."""
    for path in checkpoint_folders(folder)[keep:]:
        shutil.rmtree(path, ignore_errors=True)


def _newest_whole(there: list[Path], *, say_so: bool) -> Path:
    faults = []
    for path in there:
        try:
            _check_whole(path)
        except QuantkitError as error:
            faults.append(str(error))
            continue
        if say_so:
            for fault in faults:
                warn(f"skipped a checkpoint that is not whole: {fault}")
            lost = step_of(there[0]) - step_of(path)
            say(f"going on from {path}" + (f"; {lost} steps are lost and done again" if lost else ""))
        return path
    raise VerificationError(
        f"{there[0].parent}: no checkpoint is whole: {' | '.join(faults)}. To start again, remove the folder"
    )


def _check_whole(folder: Path) -> None:
    verify_manifest(folder)
    missing = [name for name in PARTS if not (folder / name).is_file()]
    if not list(folder.glob("rng_state*.pth")):
        missing.append("rng_state.pth")
    if missing:
        raise VerificationError(f"{folder}: {', '.join(missing)} missing; not a checkpoint of a run")
