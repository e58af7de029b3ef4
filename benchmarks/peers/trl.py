"""TRL's SFTTrainer: with its defaults; tuned for a CPU; and that with the head on response tokens only.

`tuned` is a data type: float32 holds the model, the adapters (which SFTTrainer rounds to bfloat16 on a quantized base) and the
arithmetic in float32, bfloat16 keeps them as they are; neither recomputes unless it is asked for. `response_only` is what TRL's
own kernels do on a GPU: hidden states that predict no label are left out before the head. What a user would set outside of the
trainer (the allocator, the order of rows) comes from whoever starts this.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
from trl import SFTConfig, SFTTrainer

from peers.steps import NEVER_CLIPPED, StepClock, set_adapters, write_answer


class Timed(SFTTrainer):
    """The trainer on rows in the order they come, under our clock."""

    clock: StepClock

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return SequentialSampler(self.train_dataset)

    def training_step(self, *arguments: Any, **named: Any) -> Any:
        """Note the loss of a step."""
        loss = super().training_step(*arguments, **named)
        self.clock.loss(float(loss))
        return loss


class ResponseOnly(Timed):
    """The same with a head that sees hidden states of response tokens only."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:  # noqa: ARG002
        """Return the summed cross entropy of labels by their number."""
        causal = model.get_base_model()
        hidden = causal.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)[0]
        targets = inputs["labels"][:, 1:]
        predicts = targets != -100
        logits = causal.lm_head(hidden[:, :-1][predicts]).float()
        return torch.nn.functional.cross_entropy(logits, targets[predicts], reduction="sum") / predicts.sum()


class Watch(TrainerCallback):
    """Tells the clock what happens."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Begin."""
        self.clock.start()

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        """Keep the first gradients."""
        self.clock.gradients(model)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the step."""
        self.clock.step()


def main() -> None:
    """Train the job in the file that the command line names."""
    job = json.loads(Path(sys.argv[1]).read_text())
    wanted, rows = job["changes"], [row for batch in job["batches"] for row in batch]
    single = wanted.get("tuned") == "float32"
    dtype = torch.float32 if single else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(
        job["model"],
        dtype=dtype,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        ),
        device_map={"": "cpu"},
    )
    tuned = {"bf16": not single, "gradient_checkpointing": bool(wanted.get("recompute"))} if "tuned" in wanted else {}
    arguments = SFTConfig(
        output_dir=job["scratch"],
        use_cpu=True,
        max_steps=len(job["batches"]),
        per_device_train_batch_size=len(job["batches"][0]),
        max_length=job["max_length"],
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        max_grad_norm=NEVER_CLIPPED,
        seed=job["seed"],
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **tuned,
    )
    lora = LoraConfig(r=job["lora_r"], lora_alpha=2 * job["lora_r"], target_modules=job["targets"], task_type="CAUSAL_LM")
    trainer = (ResponseOnly if wanted.get("response_only") else Timed)(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        peft_config=lora,
    )
    if single:
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    set_adapters(trainer.model, job["adapters"])
    trainer.clock = StepClock(job.get("gradients"))
    trainer.add_callback(Watch(trainer.clock))
    trainer.train()
    write_answer(job["answer"], trainer.clock.found() | {"arithmetic_dtype": "float32" if single else "bfloat16"})


if __name__ == "__main__":
    main()
