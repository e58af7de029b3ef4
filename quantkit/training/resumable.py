"""How is the state of a run written so that it goes on bit for bit, and what is kept of a run that cannot go on?

A checkpoint appears whole or not at all, holds finite numbers only, and is loaded with nothing missing. Where a step cannot be
done, because memory is short or a number is not finite, the state after the last finished step is saved first. transformers'
own way writes into the target, skips what it does not find, and ends with the library's error. Importing this module imports
transformers.
"""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from quantkit.errors import QuantkitError, VerificationError
from quantkit.files import new_folder, write_json
from quantkit.processes import said_by_first
from quantkit.training.checkpoints import FACTS, RunState, checkpoint_folders, rotate, step_of, weights_sha256
from quantkit.training.guards import NotFiniteError, state_faults
from quantkit.training.on_demand import trainer_class
from quantkit.training.parts import load_states, load_weights, whole_states, whole_weights
from quantkit.training.sharding import trains_parts
from quantkit.training.shortage import OutOfMemoryError, random_states, release, restore_random_states, shortage_of


class ResumableTrainer(trainer_class()):  # type: ignore[misc]
    """`transformers.Trainer` with our checkpoints."""

    optimizer: Any

    def __init__(self, *, state: RunState, folder: Path, keep: int, accepted: bool = False, **arguments: Any) -> None:
        """`accepted` says that settings other than the checkpoint's are to hold."""
        super().__init__(**arguments)
        self.run, self.folder, self.keep, self.accepted = state, folder, keep, accepted
        self.run_folder = folder
        self.rows: list[int] = []
        """Rows of the step so far."""
        self.step_begun = False
        """Whether the optimizer is at work, and weights may be half changed."""
        self.random_states: tuple[Any, ...] = ()
        """Those after the last finished step."""

    def step_done(self) -> None:
        """Note that a step is finished and its state good; raises `NotFiniteError` when it is not."""
        self.require_sound_state(f"after {self.where()}")
        self.step_begun, self.random_states = False, random_states()

    def require_sound_state(self, when: str) -> None:
        """Stop the run where the optimizer left a weight or a state of its own that is not finite."""
        if faults := state_faults(self.model, self.optimizer):
            raise NotFiniteError(f"{when}: {'; '.join(faults)} are not finite", state_is_good=False)

    def train_or_save(self, checkpoint: Path | None) -> None:
        """Train from a checkpoint or the start; where a step cannot be done, save the state after the last finished one.

        Raises:
            QuantkitError: a number is not finite; the text says where, what was saved and what may help.
            OutOfMemoryError: memory ran out; the text says where, what was saved and how to go on.
        """
        shortage, not_finite, good = None, None, False
        try:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except NotFiniteError as error:
            not_finite, good = str(error), error.state_is_good
        except Exception as error:
            if (shortage := shortage_of(error)) is None:
                raise
        if not_finite is not None:
            saved, _ = self._saved("" if good else "the state is not finite")
            raise QuantkitError(f"{not_finite}; {saved}. Look at these rows, lower learning_rate, or use compute_dtype float32")
        if shortage is not None:  # the error, whose frames hold the step's tensors, is gone
            where = self.where()
            saved, newest = self._saved()
            raise OutOfMemoryError(f"{where}: the device is out of memory ({shortage}); {saved}", newest)

    def _saved(self, reason: str = "") -> tuple[str, Path | None]:
        """Save the state after the last finished step unless there is a reason not to; say so, and name the newest one."""
        step = len(self.run.losses)
        target = self.folder / f"checkpoint-{step}"
        if reason:
            pass
        elif not self.random_states and not target.is_dir():
            reason = "no step was finished"
        elif self.step_begun:
            reason = "the optimizer was at work, so weights are half changed"
        elif self.args.world_size > 1:
            reason = "the other processes are in the middle of a step"
        elif not target.is_dir():
            release(self.model)
            restore_random_states(self.random_states)
            try:
                self._save_checkpoint(self.model)
            except (QuantkitError, MemoryError) as error:
                reason = str(error) or "memory ran out again"
        newest = next((path for path in checkpoint_folders(self.folder) if step_of(path) <= step), None)
        saved = f"the state after step {step} is in {target}" if not reason else f"nothing could be saved: {reason}"
        if reason and newest:
            saved += f"; the last checkpoint is {newest}"
        return saved, newest

    def where(self, rows: list[int] | None = None) -> str:
        """Return the step and the rows, all of it so far or these, for messages: `step 3 (rows 4, 17)`."""
        named = self.rows if rows is None else rows
        return f"step {len(self.run.losses) + 1} (rows {', '.join(map(str, named))})"

    def _get_output_dir(self, trial: Any = None) -> str:  # noqa: ARG002
        return str(self.run_folder)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        state_dict = whole_weights(self.model) if trains_parts(self.model) else state_dict
        if self.args.should_save:
            only_adapters = {"save_embedding_layers": False} if hasattr(self.model, "peft_config") else {}
            self.model.save_pretrained(output_dir, state_dict=state_dict, **only_adapters)

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        step = self.state.global_step
        target = self.folder / f"checkpoint-{step}"
        self.require_sound_state(f"{target} was not written")
        first = self.is_world_process_zero()
        try:
            with new_folder(target, overwrite=True) if first else nullcontext(self.folder) as temporary:
                self.run_folder = self.same_everywhere(temporary)
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                self.run.step, self.run.weights_sha256 = step, weights_sha256(self.model)
                if first:
                    inner = temporary / target.name
                    for item in inner.iterdir():
                        item.replace(temporary / item.name)
                    inner.rmdir()
                    write_json(temporary / FACTS, self.run.to_dict())
        except (OSError, RuntimeError) as error:
            good = [path for path in checkpoint_folders(self.folder) if path != target]
            kept = f"the last good one is {good[0]}" if good else "there is no earlier one"
            raise QuantkitError(f"{target}: the checkpoint cannot be written: {error}; {kept}. Is the disk full?") from None
        finally:
            self.run_folder = self.folder
        if first:
            rotate(self.folder, self.keep, step)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        own = self.optimizer
        if trains_parts(self.model):
            whole = whole_states(own)
            self.optimizer = SimpleNamespace(state_dict=lambda: whole)
        try:
            super()._save_optimizer_and_scheduler(output_dir)
        finally:
            self.optimizer = own

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if trains_parts(self.model):
            load_weights(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if weights_sha256(self.model) != self.run.weights_sha256:
            raise VerificationError(
                f"{resume_from_checkpoint}: the loaded weights are not those that were saved; the model has other adapters,"
                " or the libraries read the file differently now. Start a new run"
            )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        fresh = [{key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups]
        if checkpoint is not None and trains_parts(self.model):
            load_states(self.optimizer, Path(checkpoint) / "optimizer.pt")
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.accepted:  # what was loaded has the checkpoint's learning rate and weight decay
            schedule: Any = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
            schedule.base_lrs = [group["initial_lr"] for group in fresh]
            for group, new, course in zip(self.optimizer.param_groups, fresh, schedule.lr_lambdas, strict=True):
                group.update(new, lr=new["initial_lr"] * course(schedule.last_epoch))

    def same_everywhere(self, path: Path) -> Path:
        """Return the first process's path."""
        return said_by_first(lambda: path)
