"""A dense model, an adapter on a 4-bit base, and their tokenizer."""

from pathlib import Path
from typing import Any

import pytest

from quantkit.modeling import attach_adapter, load_base, load_tokenizer
from tests.saving.runs import METHODS, plan_of, record_of


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(str(tiny_model))


@pytest.fixture
def dense(tiny_model: Path) -> tuple[Any, dict[str, Any]]:
    plan = plan_of("NoQuant")
    return load_base(str(tiny_model), plan=plan, methods=METHODS, device="cpu"), record_of(plan, tiny_model)


@pytest.fixture
def adapter(tiny_model: Path) -> tuple[Any, dict[str, Any]]:
    plan = plan_of("QLORA", "LoRa")
    base = METHODS.prepare_model(plan, load_base(str(tiny_model), plan=plan, methods=METHODS, device="cpu"))
    model = attach_adapter(base, plan.adapter, seed=0)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(std=0.02)
    return model.eval(), record_of(plan, tiny_model, "adapter")
