"""What does quantkit change about transformers' training loop?

Four things: the loss is taken on supervised positions only, in the chosen arithmetic; the first loss or gradient norm that
is not finite ends the run before it reaches a weight; what happens is counted and shown; and checkpoints are those of
`quantkit.training.resumable`. Schedules, optimizers, accumulation, trackers and resuming stay transformers'. A loop of our
own would have to earn all of those again. Importing this module imports transformers.
"""

import math
import time
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback

from quantkit.console import Progress
from quantkit.training.attention import laid_out
from quantkit.training.guards import NotFiniteError, check_gradients, frozen_faults, state_faults
from quantkit.training.interrupt import Interruption, left_to_the_parent
from quantkit.training.offload import activations_offloaded
from quantkit.training.order import RowOrder
from quantkit.training.padding_free import Levers
from quantkit.training.resumable import ResumableTrainer
from quantkit.training.sharding import averaged, is_split
from quantkit.training.supervised import Kept, output_head, supervised_loss, supervised_positions_only, supervised_tokens


class StepTrainer(ResumableTrainer):
    """`transformers.Trainer` with our loss, guards and checkpoints."""

    def __init__(
        self,
        *,
        order: RowOrder,
        watch: "StepWatch",
        levers: Levers,
        workers: int = 0,
        offload: bool = False,
        **arguments: Any,
    ) -> None:
        self.head, self.levers = output_head(arguments["model"]), levers
        self.kept: Kept | None = None
        loss_function = self.loss_of if self.head is not None else None
        super().__init__(compute_loss_func=loss_function, callbacks=[watch], **arguments)
        self.remove_callback(PrinterCallback)
        watch.trainer = self
        self.order, self.workers, self.offload = order, workers, offload
        self.batch_rows: list[int] = []
        self.step_loss = 0.0
        self.step_tokens = [0, 0]
        self.gradients_checked = False

    def get_train_dataloader(self) -> Any:
        """Return batches in the run's own order."""
        loader = DataLoader(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size,
            sampler=self.order,
            collate_fn=self.data_collator,
            pin_memory=self.args.device.type == "cuda",
            num_workers=self.workers,
            worker_init_fn=left_to_the_parent,
        )
        return self.accelerator.prepare(loader)

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        return averaged(model) if training and is_split(model) else super()._wrap_model(model, training, dataloader)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Return the batches of one step and how many tokens they predict, over all processes."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.head is not None and batches:  # transformers counts a row's first token too where it does not know the loss
            items = torch.stack([supervised_tokens(batch["labels"]) for batch in batches]).sum().to(device)
            items = self.accelerator.reduce(items) if self.args.world_size > 1 else items
        return batches, items

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """Run one forward and backward pass; the first one of a run also checks the gradients."""
        self.batch_rows = inputs.pop("rows").tolist()
        self.rows += self.batch_rows
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
        self.require_finite(loss, "the loss", self.batch_rows)
        return loss

    def loss_of(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """Return the loss of a batch; transformers calls this with what the model gave."""
        loss = supervised_loss(outputs, labels, num_items_in_batch, kept=self.kept)
        self.kept = None
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.require_finite(norm, "the norm of the gradients", self.rows)
        return norm

    def require_finite(self, value: Any, what: str, rows: list[int]) -> None:
        """Stop the run before a value that is not finite reaches a weight."""
        number = value.item() if torch.is_tensor(value) else float(value)
        if not math.isfinite(number):
            faults = [*state_faults(self.model, self.optimizer), *frozen_faults(self.model)]
            cause = f"; before this step {'; '.join(faults)} were not finite" if faults else ", which reached no weight"
            raise NotFiniteError(f"{self.where(rows)}: {what} is {number}{cause}", state_is_good=not faults)

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


class StepWatch(TrainerCallback):  # type: ignore[misc]
    """Counts finished steps, shows them, and ends the run when a signal came."""

    def __init__(self, interruption: Interruption) -> None:
        self.trainer: StepTrainer | None = None
        self.progress: Progress | None = None
        self._interruption = interruption
        self._before_s = self._start = 0.0
        self._tokens_before = 0

    def on_train_begin(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Start the clock; transformers calls this after loading a checkpoint, whose intervals are not this run's."""
        assert self.trainer is not None
        state.compute_steps(args, state.max_steps)
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
        trainer.step_done()
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
