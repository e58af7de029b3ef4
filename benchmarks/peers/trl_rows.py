"""Does TRL's SFTTrainer stop before its first step on rows that teach the wrong thing? One process for one fault.

    python -m peers.trl_rows JOB.json

The rows are given in the forms TRL documents: `messages` as they are, question and answer as prompt and completion turns. The
answer says whether the first step was reached, and what it would have learnt.
"""

import json
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


class FirstStepReachedError(Exception):
    """The trainer would train now."""


class Stopping(SFTTrainer):
    """Goes no farther than its first step."""

    def training_step(self, _model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        """Say what would be learnt."""
        labels = inputs["labels"][0]
        raise FirstStepReachedError(self.processing_class.decode([int(item) for item in labels if item != -100]))


def main() -> None:
    """Try the rows of a job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    found: dict[str, Any] = {"reached": False, "learnt": "", "error": ""}
    try:
        rows = [json.loads(line) for line in Path(job["rows"]).read_text().splitlines()]
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(job["model"]))
        trainer = Stopping(
            model=model,
            args=SFTConfig(
                output_dir=job["scratch"],
                use_cpu=True,
                bf16=False,
                max_length=job["max_length"],
                per_device_train_batch_size=1,
                max_steps=1,
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list([as_turns(row) for row in rows]),
            processing_class=AutoTokenizer.from_pretrained(job["model"]),
        )
        trainer.train()
    except FirstStepReachedError as reached:
        found |= {"reached": True, "learnt": str(reached)}
    except Exception as error:  # whatever it says is the outcome
        found["error"] = f"{type(error).__name__}: {error}"
    Path(job["answer"]).write_text(json.dumps(found))


def as_turns(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in a form TRL documents; values as they are."""
    if "messages" in row:
        return row
    return {
        "prompt": [{"role": "user", "content": row["question"]}],
        "completion": [{"role": "assistant", "content": row["answer"]}],
    }


if __name__ == "__main__":
    main()
