"""What do transformers' Trainer and PEFT do where our promises are tried? The same faults, on the same small model.

An outcome is one of: `recovered` (the end is that of the run that nothing happened to), `refused` (an error before anything was
lost), `stopped` (an error; going on takes finding by hand which checkpoint is whole), `silent` (another result, no error).
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file

from quantkit.errors import QuantkitError
from tests.merging.folders import edit_json, edit_tensors, simple
from tests.merging.spoilt import SPOILT
from tests.reliability.faults.walks import spread
from tests.reliability.faults.watch import watched
from tests.reliability.test_r02_corruptions import CORRUPTIONS, GOOD, NEWEST
from tests.reliability.training import Small
from tests.training.helpers import equal, trained

STEPS = 6
Outcomes = Counter[str]


def trainer_of(model: Any, small: Small, folder: Path, **changes: Any) -> Any:
    """Return transformers' Trainer on the rows of the tests."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": STEPS,
        "save_steps": GOOD,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "seed": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    return Trainer(
        model=model,
        args=TrainingArguments(**(arguments | changes)),
        train_dataset=[{"input_ids": row.input_ids, "labels": row.labels} for row in small.data.train],
        data_collator=DataCollatorForSeq2Seq(small.tokenizer, label_pad_token_id=-100),
    )


def whole_run(small: Small, folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of the run that nothing happens to; its checkpoints stay in the folder."""
    model = small.fresh("LoRA")
    trainer_of(model, small, folder).train()
    return trained(model)


def resumed(small: Small, folder: Path, expected: dict[str, torch.Tensor]) -> str:
    """Go on from a folder's newest checkpoint, as a user does; return the outcome."""
    model = small.fresh("LoRA")
    try:
        trainer_of(model, small, folder).train(resume_from_checkpoint=True)
    except Exception:  # whatever it stumbles over is the outcome
        return "stopped"
    return "recovered" if equal(trained(model), expected) else "silent"


def kills(small: Small, most: int) -> Outcomes:
    """Kill before calls of the save of the last checkpoint, each in a copy of the run, then go on from what is left."""
    from transformers import Trainer

    folder = Path(tempfile.mkdtemp(prefix="kills-")) / "run"
    expected = whole_run(small, folder)
    shutil.rmtree(folder)
    found: Outcomes = Counter()
    original = Trainer._save_checkpoint

    def walk(self: Any, *arguments: Any) -> None:
        if self.state.global_step == NEWEST and not found:
            before = folder.with_name("before")
            shutil.copytree(folder, before)

            def save() -> None:
                original(self, *arguments)

            def restore() -> None:
                shutil.rmtree(folder)
                shutil.copytree(before, folder)

            calls = len(watched(save, folder).calls)
            for at in spread(calls, most):
                restore()
                watched(save, folder, fault="kill", at=at)
                left = folder.with_name(f"left-{at}")
                shutil.copytree(folder, left)
                found["pending"] += 1
            restore()
        original(self, *arguments)

    with patch.object(Trainer, "_save_checkpoint", walk):
        trainer_of(small.fresh("LoRA"), small, folder).train()
    outcomes: Outcomes = Counter()
    for left in sorted(folder.parent.glob("left-*")):
        outcomes[resumed(small, left, expected)] += 1
    shutil.rmtree(folder.parent)
    return outcomes


def corruptions(small: Small) -> Outcomes:
    """Damage the newest checkpoint in each way that transformers' files allow, and go on."""
    folder = Path(tempfile.mkdtemp(prefix="corruptions-"))
    expected = whole_run(small, folder / "whole")
    shutil.rmtree(folder / "whole" / f"checkpoint-{STEPS}")
    control = resumed(small, shutil.copytree(folder / "whole", folder / "control"), expected)
    if control != "recovered":
        raise QuantkitError(f"transformers' own resume of an undamaged checkpoint was {control}: this probe measures nothing")
    found: Outcomes = Counter()
    for number, (corrupt, _) in enumerate(CORRUPTIONS.values()):
        copy = shutil.copytree(folder / "whole", folder / str(number))
        try:
            corrupt(copy / f"checkpoint-{NEWEST}")
        except FileNotFoundError:  # a file of ours only
            continue
        found[resumed(small, copy, expected)] += 1
    shutil.rmtree(folder)
    return found


def not_finite(small: Small) -> Outcomes:
    """Put NaN into a weight and into a gradient before steps 2 to 5: does it stop, and what is saved?"""
    from transformers import TrainerCallback

    found: Outcomes = Counter()
    for step in range(2, 6):
        for place in ("weight", "gradient"):
            model, folder = small.fresh("LoRA"), Path(tempfile.mkdtemp(prefix="nan-"))
            chosen = next(item for name, item in model.named_parameters() if "lora_B" in name)

            class Spoil(TrainerCallback):
                """Does it at the step."""

                def on_step_begin(self, _args: Any, state: Any, *_: Any, at: int = step, **__: Any) -> None:
                    if state.global_step == at - 1 and place == "weight":  # noqa: B023 - used before the next
                        chosen.data.view(-1)[0] = float("nan")  # noqa: B023

                def on_pre_optimizer_step(self, _args: Any, state: Any, *_: Any, at: int = step, **__: Any) -> None:
                    if state.global_step == at - 1 and place == "gradient":  # noqa: B023
                        chosen.grad.view(-1)[0] = float("nan")  # noqa: B023

            trainer = trainer_of(model, small, folder)
            trainer.add_callback(Spoil())
            try:
                trainer.train()
                trainer.save_model(str(folder / "final"))
                saved = load_file(folder / "final" / "adapter_model.safetensors")
                found["recovered" if all(bool(item.isfinite().all()) for item in saved.values()) else "silent"] += 1
            except Exception:
                found["refused"] += 1
            shutil.rmtree(folder)
    return found


def merges() -> Outcomes:
    """Merge what must not be merged by PEFT: refused, or another model without an error?"""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    root = Path(tempfile.mkdtemp(prefix="merges-"))
    base, adapter, _ = simple(root)
    ids = torch.arange(3, 40)[None]

    def merged(base: Path, adapter: Path) -> Any:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return PeftModel.from_pretrained(model, adapter).merge_and_unload()

    with torch.no_grad():
        expected = merged(base, adapter)(input_ids=ids).logits
    found: Outcomes = Counter()
    for number, spoil in enumerate(MERGE_FAULTS.values()):
        folder = root / str(number)
        case = shutil.copytree(base, folder / "base"), shutil.copytree(adapter, folder / "adapter")
        try:
            spoil(*case)
            with torch.no_grad():
                logits = merged(*case)(input_ids=ids).logits
        except Exception:
            found["refused"] += 1
            continue
        found["recovered" if torch.allclose(logits, expected, atol=1e-4) else "silent"] += 1
    shutil.rmtree(root)
    return found


def _spoilt(fault: str) -> Callable[[Path, Path], None]:
    return lambda _base, adapter: edit_tensors(adapter, SPOILT[fault][0])


def _another_base(base: Path, _adapter: Path) -> None:
    from safetensors.torch import save_file

    path = base / "model.safetensors"
    chance = torch.Generator().manual_seed(9)
    tensors = {name: torch.randn(item.shape, generator=chance).to(item.dtype) * 0.02 for name, item in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def _nan_in_the_base(base: Path, _adapter: Path) -> None:
    from safetensors.torch import save_file

    path = base / "model.safetensors"
    tensors = load_file(path)
    next(item for name, item in tensors.items() if "q_proj" in name).view(-1)[0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})


MERGE_FAULTS: dict[str, Callable[[Path, Path], None]] = {
    "another base of the same shape": _another_base,
    "keys renamed throughout": _spoilt("renamed throughout"),
    "one layer's keys renamed": _spoilt("a renamed layer"),
    "a tensor missing": _spoilt("a tensor missing"),
    "alpha edited": lambda _base, adapter: edit_json(adapter / "adapter_config.json", lora_alpha=64),
    "rank edited": lambda _base, adapter: edit_json(adapter / "adapter_config.json", r=8),
    "NaN in the adapter": _spoilt("nan"),
    "NaN in the base": _nan_in_the_base,
    "no tensors": _spoilt("empty"),
    "never trained": _spoilt("never trained"),
}
