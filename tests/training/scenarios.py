"""Runs that one process and two must do alike: their models, rows and settings."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from quantkit.adapters import attach_adapter
from quantkit.config import RunConfig
from quantkit.data import PreparedData
from quantkit.plan import AdapterPlan
from tests.training.helpers import adapted, config


@dataclass(frozen=True, slots=True)
class Scenario:
    """A run of four rows per step and process."""

    storage: str = ""
    """Data type that holds 4-bit codes; "" for a dense base."""
    sharding: str = "none"
    """What two processes do with the base."""
    rows: int = 21
    settings: dict[str, Any] = field(default_factory=dict)
    full: bool = False
    """Whether all weights are trained."""

    def rows_of(self, data: PreparedData) -> PreparedData:
        """Return the first rows to train on, and two held-out ones."""
        return replace(data, train=data.train[: self.rows], evaluation=data.evaluation[:2])

    def split(self) -> RunConfig:
        """Return the settings of two processes: two rows, twice, per step and process."""
        return self._of(per_device_train_batch_size=2, gradient_accumulation_steps=2, sharding=self.sharding)

    def whole(self) -> RunConfig:
        """Return the settings of one process that does the same steps."""
        return self._of(per_device_train_batch_size=8)

    def _of(self, **size: Any) -> RunConfig:
        # Adam divides rounding by rounding where gradients are zero; gradient descent does not
        sgd = {"max_steps": -1, "optim": "sgd", "learning_rate": 0.5}
        return config(**(sgd | self.settings | size))


SCENARIOS = {
    "dense": Scenario(settings={"num_train_epochs": 2, "group_by_length": True, "recompute": "selective"}),
    "four bit": Scenario("uint8", rows=11, settings={"recompute": "full"}),
    "split four bit": Scenario("bfloat16", "fsdp2", rows=11, settings={"recompute": "full:2,selective:1"}),
    "split full": Scenario(
        "", "fsdp2", settings={"recompute": "selective", "peft_config": "NoPeft", "learning_rate": 0.05}, full=True
    ),
}


def made(scenario: Scenario, folder: Any) -> Any:
    """Return the scenario's model, with fresh adapters unless all of it is trained."""
    if scenario.full:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if not scenario.storage:
        return adapted(folder)
    from transformers import BitsAndBytesConfig

    types = {"bnb_4bit_compute_dtype": torch.float32, "bnb_4bit_quant_storage": scenario.storage}
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **types)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map={"": "cpu"}, quantization_config=four_bit
    )
    return attach_adapter(model, AdapterPlan(kind="LoRa", r=4, lora_alpha=8), seed=1)
