"""A narrow model to save, and a folder to save it in, for the tests that walk faults through saves."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit.calibration import QuantizationWork
from quantkit.methods import installed_methods
from quantkit.modeling import load_tokenizer
from tests.bench import plan_for
from tests.merging.folders import model_folder, saved_adapter
from tests.reliability.faults import cases
from tests.reliability.faults.walks import Case
from tests.saving.runs import record_of

MEMORY = Path("/dev/shm")


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: fsync costs nothing there, and the kernel's calls are the same."""
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < 1 << 28:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one narrow layer."""
    folder = tmp_path_factory.mktemp("models") / "Tiny-Llama"
    return model_folder(folder, num_hidden_layers=1, hidden_size=64, intermediate_size=128, num_attention_heads=2)


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Any:
    """The tiny model's tokenizer."""
    return load_tokenizer(str(tiny_model))


@pytest.fixture
def one_thread() -> None:
    """A copy of a process has none of its other threads."""
    torch.set_num_threads(1)


def dense_model(scratch: Path, small: Path, tokenizer: Any, *, overwrite: bool = True) -> Case:
    """A whole 16-bit model is saved."""
    from transformers import AutoModelForCausalLM

    record = record_of(plan_for("NoQuant", dtype="bfloat16"), small)
    model = AutoModelForCausalLM.from_pretrained(small)
    return cases.an_artifact(scratch, "model", model, tokenizer, record, overwrite=overwrite)


def kept_adapter(scratch: Path, small: Path, tokenizer: Any) -> Case:
    """An adapter is saved."""
    plan = plan_for("NoQuant")
    _, model = saved_adapter(small, scratch / "adapter", plan)
    return cases.an_artifact(scratch, "kept", model.eval(), tokenizer, record_of(plan, small, "adapter"), overwrite=True)


def quantized_model(scratch: Path, small: Path, tokenizer: Any) -> Case:
    """A model with packed integers is saved."""
    from transformers import AutoModelForCausalLM

    from quantkit import AdapterPlan, PlanContext, Stage

    methods = installed_methods()
    plan = methods.plan("RTN", {"group_size": 16}, PlanContext(stage=Stage.TRAINED, adapter=AdapterPlan(kind="NoPeft")))
    model = methods.quantize_model(plan, AutoModelForCausalLM.from_pretrained(small), None, QuantizationWork())
    return cases.an_artifact(scratch, "quantized", model, tokenizer, record_of(plan, small), overwrite=True)


def merged_model(scratch: Path, small: Path, _tokenizer: Any) -> Case:
    """An adapter is folded into its base tensor by tensor."""
    plan = plan_for("NoQuant")
    adapter, _ = saved_adapter(small, scratch / "adapter", plan)
    return cases.a_merge(scratch, small, adapter, plan)
