"""What does quantkit change about transformers' training loop?

Four things: the loss is taken on supervised positions only, in the chosen arithmetic; the first loss or gradient norm that
is not finite ends the run before it reaches a weight; a checkpoint appears whole or not at all; and what happens is
counted and shown. Schedules, optimizers, accumulation, trackers and resuming stay transformers'. A loop of our own would
have to earn all of those again. Importing this module imports transformers.
"""

import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback

from quantkit.console import Progress
from quantkit.errors import QuantkitError, VerificationError
from quantkit.files import new_folder, write_json
from quantkit.processes import said_by_first
from quantkit.training.attention import laid_out
from quantkit.training.checkpoints import FACTS, RunState, checkpoint_folders, rotate, weights_sha256
from quantkit.training.guards import check_gradients
from quantkit.training.interrupt import Interruption
from quantkit.training.offload import activations_offloaded
from quantkit.training.order import RowOrder
from quantkit.training.padding_free import Levers
from quantkit.training.sharding import is_split, replicated
from quantkit.training.shortage import OutOfMemoryError, random_states, release, restore_random_states, shortage_of
from quantkit.training.supervised import Kept, output_head, supervised_loss, supervised_positions_only, supervised_tokens


class StepTrainer(Trainer):  # type: ignore[misc]
    """`transformers.Trainer` with our loss, guards and checkpoints."""

    def __init__(
        self,
        *,
        order: RowOrder,
        state: RunState,
        folder: Path,
        keep: int,
        watch: "StepWatch",
        levers: Levers,
        offload: bool = False,
        **arguments: Any,
    ) -> None:
        self.head, self.levers = output_head(arguments["model"]), levers
        self.kept: Kept | None = None
        loss_function = self.loss_of if self.head is not None else None
        super().__init__(compute_loss_func=loss_function, callbacks=[watch], **arguments)
        self.remove_callback(PrinterCallback)
        watch.trainer = self
        self.order, self.run, self.folder, self.keep, self.offload = order, state, folder, keep, offload
        self.run_folder = folder
        self.rows: list[int] = []
        self.step_loss = 0.0
        self.step_tokens = [0, 0]
        self.gradients_checked = False
        self.step_begun = False
        """Whether the optimizer is at work, and weights may be half changed."""
        self.random_states: tuple[Any, ...] = ()
        """Those after the last finished step."""

    def get_train_dataloader(self) -> Any:
        """Return batches in the run's own order."""
        loader = DataLoader(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size,
            sampler=self.order,
            collate_fn=self.data_collator,
            pin_memory=self.args.device.type == "cuda",
        )
        return self.accelerator.prepare(loader)

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        return replicated(model) if training and is_split(model) else super()._wrap_model(model, training, dataloader)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Return the batches of one step and how many tokens they predict, over all processes."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.head is not None and batches:  # transformers counts a row's first token too where it does not know the loss
            items = torch.stack([supervised_tokens(batch["labels"]) for batch in batches]).sum().to(device)
            items = self.accelerator.reduce(items) if self.args.world_size > 1 else items
        return batches, items

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """Run one forward and backward pass; the first one of a run also checks the gradients."""
        self.rows += inputs.pop("rows").tolist()
        layout = inputs.pop("layout", None)
        self.step_tokens[0] += inputs.pop("tokens")
        self.step_tokens[1] += int(supervised_tokens(inputs["labels"]))
        with laid_out(layout):
            loss = super().training_step(model, inputs, num_items_in_batch)
        if not self.gradients_checked:
            check_gradients(self.model, where=self.where())
            self.gradients_checked = True
        self.step_loss += float(loss)
        return loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **named: Any) -> Any:
        """Return the loss on supervised positions; raises `QuantkitError` when it is not finite."""
        narrow: Any = nullcontext()
        if self.head is not None and self.levers.supervised_only:
            narrow = supervised_positions_only(self.head, inputs["labels"], self.levers.tail)
        half = torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.run.arithmetic_dtype == "bfloat16")
        with narrow as self.kept, half, activations_offloaded(self.model, wanted=self.offload):
            loss = super().compute_loss(model, inputs, *arguments, **named)
        self.require_finite(loss, "the loss")
        return loss

    def loss_of(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """Return the loss of a batch; transformers calls this with what the model gave."""
        loss = supervised_loss(outputs, labels, num_items_in_batch, kept=self.kept)
        self.kept = None
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self.require_finite(norm, "the norm of the gradients")
        return norm

    def require_finite(self, value: Any, what: str) -> None:
        """Stop the run before a value that is not finite reaches a weight."""
        number = value.item() if torch.is_tensor(value) else float(value)
        if not math.isfinite(number):
            good = checkpoint_folders(self.folder)
            kept = f"the last good state is {good[0]}" if good else "no checkpoint was due yet (see save_steps)"
            raise QuantkitError(
                f"{self.where()}: {what} is {number}; the run stopped before it reached the weights, {kept}."
                " Look at these rows, lower learning_rate, or use compute_dtype float32"
            )

    def train_or_save(self, checkpoint: Path | None) -> None:
        """Train from a checkpoint or the start; where memory runs out, save the state after the last finished step.

        Raises:
            OutOfMemoryError: memory ran out; the text says where, what was saved and how to go on.
        """
        shortage = None
        try:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except Exception as error:
            if (shortage := shortage_of(error)) is None:
                raise
        if shortage is not None:  # the error, whose frames hold the step's tensors, is gone
            raise self._saved(shortage)

    def _saved(self, shortage: str) -> OutOfMemoryError:
        step, where = len(self.run.losses), self.where()
        target = self.folder / f"checkpoint-{step}"
        reason = ""
        if not self.random_states:
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
        newest = next(iter(checkpoint_folders(self.folder)), None)
        saved = f"the state after step {step} is in {target}" if not reason else f"nothing could be saved: {reason}"
        if reason and newest:
            saved += f"; the last checkpoint is {newest}"
        return OutOfMemoryError(f"{where}: the device is out of memory ({shortage}); {saved}", newest)

    def where(self) -> str:
        """Return the step and its rows for messages: `step 3 (rows 4, 17)`."""
        return f"step {self.state.global_step + 1} (rows {', '.join(map(str, self.rows))})"

    def finish_step(self, *, stop: bool) -> bool:
        """Count a step's tokens and record its loss, over all processes; return whether any of them is to stop."""
        loss, seen, supervised, stops = self.sums(self.step_loss, *self.step_tokens, stop)
        self.run.losses.append(loss / max(self.args.world_size, 1))
        self.run.tokens += int(seen)
        self.run.response_tokens += int(supervised)
        self.rows, self.step_loss, self.step_tokens = [], 0.0, [0, 0]
        return stops > 0

    def sums(self, *values: float) -> list[float]:
        """Return sums over all processes."""
        if self.args.world_size == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=self.args.device)
        return [float(value) for value in self.accelerator.reduce(summed)]

    def _get_output_dir(self, trial: Any = None) -> str:  # noqa: ARG002
        return str(self.run_folder)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            only_adapters = {"save_embedding_layers": False} if hasattr(self.model, "peft_config") else {}
            self.model.save_pretrained(output_dir, state_dict=state_dict, **only_adapters)

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        step = self.state.global_step
        target = self.folder / f"checkpoint-{step}"
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
            rotate(self.folder, self.keep)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if weights_sha256(self.model) != self.run.weights_sha256:
            raise VerificationError(
                f"{resume_from_checkpoint}: the loaded weights are not those that were saved; the model has other adapters,"
                " or the libraries read the file differently now. Start a new run"
            )

    def same_everywhere(self, path: Path) -> Path:
        """Return the first process's path."""
        return said_by_first(lambda: path)


class StepWatch(TrainerCallback):  # type: ignore[misc]
    """Counts finished steps, shows them, and ends the run when a signal came."""

    def __init__(self, interruption: Interruption) -> None:
        self.trainer: StepTrainer | None = None
        self.progress: Progress | None = None
        self._interruption = interruption
        self._before_s = self._start = 0.0
        self._tokens_before = 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock; transformers calls this after loading a checkpoint."""
        assert self.trainer is not None
        self._start, self._before_s = time.perf_counter(), self.trainer.run.duration_s
        self._tokens_before = self.trainer.run.tokens

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Note that weights change from here on."""
        assert self.trainer is not None
        self.trainer.step_begun = True

    def on_step_end(self, args: Any, _state: Any, control: Any, **_: Any) -> None:
        """Record the step's loss, show it, and ask for a checkpoint and the end when a signal came."""
        trainer = self.trainer
        assert trainer is not None
        trainer.step_begun, trainer.random_states = False, random_states()
        elapsed_s = time.perf_counter() - self._start
        self._interruption.requested |= trainer.finish_step(stop=self._interruption.requested)
        trainer.run.duration_s = self._before_s + elapsed_s
        if self.progress is not None:
            tokens_per_s = (trainer.run.tokens - self._tokens_before) / elapsed_s
            self.progress.advance(
                1, loss=round(trainer.run.losses[-1], 4), tokens_per_s=tokens_per_s, **memory_now(args.device)
            )
        if self._interruption.requested:
            control.should_training_stop = control.should_save = True


def memory_now(device: Any) -> dict[str, int]:
    """Return the memory in use, in bytes, under a name that says whose number it is."""
    if device.type == "cuda":
        return {"allocated_bytes": torch.cuda.memory_allocated(device)}
    import psutil

    return {"resident_bytes": psutil.Process().memory_info().rss}
