"""Which settings does transformers' Trainer get?

Asked twice: before the model is loaded, so that an optimizer that does not exist costs no load, and for training itself.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.errors import UsageError
from quantkit.plan import QuantizationPlan

if TYPE_CHECKING:
    from quantkit.config import RunConfig


def trainer_arguments(config: "RunConfig", plan: QuantizationPlan, folder: Path, total: int, device: str) -> Any:
    """Return `transformers.TrainingArguments`.

    Raises:
        UsageError: an optimizer or tracker is not there, or the device is not the one that training runs on.
    """
    import torch
    from transformers import TrainingArguments
    from transformers.integrations import get_reporting_integration_callbacks

    try:
        for tracker in get_reporting_integration_callbacks(list(config.report_to)):
            tracker()
        arguments = TrainingArguments(
            output_dir=str(folder),
            use_cpu=torch.device(device).type == "cpu",
            max_steps=total,
            per_device_train_batch_size=config.per_device_train_batch_size,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            learning_rate=config.learning_rate,
            lr_scheduler_type=config.lr_scheduler_type,
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            optim=config.optim or plan.optim or "adamw_torch",
            seed=config.seed,
            logging_steps=config.logging_steps,
            logging_nan_inf_filter=False,
            save_strategy="steps" if config.save_steps else "no",
            save_steps=config.save_steps or total,
            report_to=list(config.report_to) or "none",
            remove_unused_columns=False,
            disable_tqdm=True,
            ddp_find_unused_parameters=False,
        )
    except (ValueError, ImportError, RuntimeError) as error:
        raise UsageError(f"settings: optim or report_to: {str(error).splitlines()[0]}") from None
    wanted = torch.device(device)
    if wanted.index is not None and wanted != arguments.device:
        raise UsageError(f"device {device}: training runs on {arguments.device}; choose the GPU with CUDA_VISIBLE_DEVICES")
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # one process trains on one GPU; more come with torchrun, not with threads
    return arguments
