"""How do a prepared model, encoded rows and settings become trained weights?

`train` sets transformers' Trainer up and gives the model back in the data types it came in. It decides nothing that the
settings or the plan say.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.console import Progress, progress
from quantkit.layers import bare_model
from quantkit.placement import check_splitting
from quantkit.plan import QuantizationPlan
from quantkit.processes import is_first, world_size
from quantkit.training.arguments import trainer_arguments
from quantkit.training.guards import check_learned
from quantkit.training.heap import give_back, held_small
from quantkit.training.interrupt import interruptible
from quantkit.training.offload import check_offloading
from quantkit.training.precision import training_dtypes
from quantkit.training.recompute import recompute_of, recomputed
from quantkit.training.result import TrainingResult
from quantkit.training.start import Start, find_start

if TYPE_CHECKING:
    from quantkit.config import RunConfig
    from quantkit.data import PreparedData
    from quantkit.training.loop import StepTrainer
    from quantkit.training.padding_free import Levers

EVALUATION_SHARE = 10
"""Held-out rows are scored before and after on at most a tenth as many rows as are trained on."""


def train(
    model: Any,
    data: "PreparedData",
    config: "RunConfig",
    plan: QuantizationPlan,
    *,
    tokenizer: Any,
    checkpoints: Path,
    device: str,
    begun: Start | None = None,
) -> TrainingResult:
    """Train the model's trainable parameters in place; checkpoints are written below `checkpoints`.

    Trainable parameters and optimizer are float32 while training (`quantkit.training.precision`). A first signal
    ends the run after its step with a checkpoint and `interrupted` set. `begun` is what `find_start` gave for the same data and
    settings, before the model was loaded; it is asked for otherwise.

    Raises:
        QuantkitError: a loss or gradient norm is not finite, or a checkpoint cannot be written.
        OutOfMemoryError: memory ran out; the state after the last finished step is saved where that is possible.
        UsageError: the checkpoint to go on from is another run's, or a setting does not fit.
        VerificationError: a parameter gets no gradient, the adapters learnt nothing, or no checkpoint is whole.
    """
    from quantkit.data.collate import Collator
    from quantkit.training.attention import rows_apart
    from quantkit.training.evaluate import mean_loss
    from quantkit.training.fused_adapters import fused_adapters
    from quantkit.training.layouts import FlatCollator
    from quantkit.training.loop import StepTrainer, StepWatch
    from quantkit.training.order import RowOrder, WithRows, fillers, items_of, total_steps
    from quantkit.training.sharding import split_over_processes
    from quantkit.training.supervised import output_head

    check_offloading(config, device)
    check_splitting(config)
    processes, first = world_size(), is_first()
    begun = begun or find_start(data, config, plan, tokenizer=tokenizer, checkpoints=checkpoints, device=device)
    begun.meet(model, config, device)
    checkpoint, state = begun.checkpoint, begun.state
    items_per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * processes
    collate = Collator(_pad_token(tokenizer))

    def loss_of_held_out() -> float:
        batch: dict[str, Any] = {
            "batch_size": config.per_device_train_batch_size,
            "device": device,
            "dtype": state.arithmetic_dtype,
        }
        return mean_loss(model, held_out, collate, **batch, tail=levers.tail)

    with _left_as_found(model), training_dtypes(model, state.arithmetic_dtype):
        levers = _levers(model, data, config, state.arithmetic_dtype, notice=first)
        items = items_of(data.train, config, packing=levers.packing)
        fill = -len(items) % (config.per_device_train_batch_size * processes) if processes > 1 else 0
        total = total_steps(len(items), config, processes)
        arguments = trainer_arguments(config, plan, checkpoints, total, device)
        rows_trained_on = total * items_per_step * len(data.train) // len(items)
        held_out = data.evaluation[: max(rows_trained_on // EVALUATION_SHARE, 1)]
        begun.settle(config, total, held_out, checkpoints)
        with (
            split_over_processes(model, device=device, arithmetic=state.arithmetic_dtype, wanted=config.sharding == "fsdp2"),
            interruptible(notice=first) as interruption,
        ):
            order = RowOrder(
                [sum(len(row.input_ids) for row in item) for item in items],
                seed=config.seed,
                group=items_per_step if config.group_by_length else None,
                fill=fill,
            )
            watch = StepWatch(interruption)
            trainer = StepTrainer(
                model=model,
                args=arguments,
                train_dataset=items + fillers(items, fill, own_loss=output_head(model) is None, notice=first),
                data_collator=WithRows(FlatCollator(levers.prefix_sharing) if levers.padding_free else collate),
                order=order,
                state=state,
                folder=checkpoints,
                keep=config.save_total_limit,
                workers=config.dataloader_num_workers,
                accepted=bool(state.accepted),
                watch=watch,
                levers=levers,
                offload=config.activation_offloading,
            )
            if held_out and checkpoint is None:
                state.evaluation_loss_before = loss_of_held_out()
            start, fused, again = state.step, 0, recompute_of(config, state.recompute)
            give_back()  # what loading left
            if start < total:
                with (
                    rows_apart(model) if levers.padding_free else nullcontext(),
                    fused_adapters(
                        model, arithmetic=state.arithmetic_dtype, wanted=config.fused_adapters, notice=first
                    ) as fused,
                    recomputed(model, again, notice=first) as state.recompute,
                    held_small(model, device, wanted=state.recompute != "none" or config.sharding == "fsdp2"),
                    _shown(trainer, total - start, start) as watch.progress,
                ):
                    trainer.train_or_save(checkpoint)
            else:
                trainer._load_from_checkpoint(str(checkpoint))
            steps = len(state.losses)
            after = None
            if steps == total:
                check_learned(model, steps=steps)
                after = loss_of_held_out() if held_out else None
            interrupted = any(trainer.sums(interruption.requested))
            if (interrupted or _folds(config, plan)) and state.step < steps:
                trainer._save_checkpoint(model)
    return TrainingResult(
        steps=steps,
        total_steps=total,
        losses=list(state.losses),
        final_loss=state.losses[-1],
        duration_s=round(state.duration_s, 3),
        tokens=state.tokens,
        response_tokens=state.response_tokens,
        tokens_per_s=round(state.tokens / state.duration_s, 3),
        arithmetic_dtype=state.arithmetic_dtype,
        padding_free=levers.padding_free,
        prefix_sharing=levers.prefix_sharing,
        packing=levers.packing,
        fused_adapters=fused,
        recompute=state.recompute or "none",
        optim=str(getattr(arguments.optim, "value", arguments.optim)),
        trainable_parameters=sum(item.numel() for item in model.parameters() if item.requires_grad),
        evaluation_loss_before=state.evaluation_loss_before,
        evaluation_loss_after=after,
        evaluation_rows=len(held_out),
        interrupted=interrupted,
        resumed_from=start if checkpoint else None,
        accepted_changes=list(state.accepted),
    )


def _folds(config: "RunConfig", plan: QuantizationPlan) -> bool:
    """Whether adapters are folded in afterwards: they are read from the last checkpoint then, and a merge that dies goes on."""
    return config.merge_after_train and plan.adapter.kind != "NoPeft"


def _levers(model: Any, data: "PreparedData", config: "RunConfig", arithmetic: str, *, notice: bool) -> "Levers":
    """Return the levers that this model, in the data types of training, allows; tried in the arithmetic of the run."""
    import torch

    from quantkit.training.padding_free import usable_levers

    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=arithmetic == "bfloat16"):
        return usable_levers(model, config, data.train[0].input_ids, device=str(device), notice=notice)


def _pad_token(tokenizer: Any) -> int:
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


@contextmanager
def _shown(trainer: "StepTrainer", steps: int, start: int) -> Iterator[Progress | None]:
    """Show a progress on the first process."""
    title = f"train from step {start}" if start else "train"
    with progress(title, steps, unit="steps") if trainer.is_world_process_zero() else nullcontext() as shown:
        yield shown


@contextmanager
def _left_as_found(model: Any) -> Iterator[None]:
    """Undo what the Trainer sets on a model: the cache switch, training mode, gradients."""
    base = bare_model(model)
    cache, mode = getattr(base.config, "use_cache", None), model.training
    try:
        yield
    finally:
        base.config.use_cache = cache
        model.zero_grad(set_to_none=True)
        model.train(mode)
