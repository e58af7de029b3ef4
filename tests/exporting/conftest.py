"""`quantkit export` in this process, into a registry of its own."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run
from tests.tiny import tiny_config


@pytest.fixture(scope="session")
def small_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One untrained block with the tiny model's tokenizer: whether codes are equal does not depend on what was learnt."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("small") / "Small"
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config(num_hidden_layers=1)).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of artifacts."""
    monkeypatch.setenv("QUANTKIT_REGISTRY", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts"


@pytest.fixture
def export(root: Path, quantkit: Run) -> Run:
    """Run `quantkit export …`; return exit code, stdout and stderr."""
    return partial(quantkit, "export")


@pytest.fixture
def exported(export: Run) -> Callable[..., Any]:
    """Run `quantkit export … --json`, which must succeed; return the object it prints."""

    def run(*arguments: object) -> Any:
        code, out, err = export(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return run
