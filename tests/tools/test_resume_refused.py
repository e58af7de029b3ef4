"""Is a run that cannot go on from its checkpoint told so before any weights are loaded?

The base of every case holds noise where its weights were, and loading a model is an error.
"""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quantkit import modeling
from quantkit.headers import read_header
from quantkit_registry.records import read_record
from quantkit_tools.cli import run_verb


@pytest.fixture(scope="module")
def finished(tiny_model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a base, rows, and a kept adapter of two steps with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(tiny_model, folder / "Tiny-Llama")
    shutil.copy(rows, folder / "rows.jsonl")
    assert run_verb("train", flags(folder)) == 0
    return folder


def flags(folder: Path, **changed: object) -> list[str]:
    """Return the flags of the run in a folder."""
    settings = {
        "model_name_or_path": folder / "Tiny-Llama",
        "dataset_name": f"openmath:{folder / 'rows.jsonl'}",
        "output_dir": folder / "artifacts",
        "merge_after_train": "false",
        "lora_r": 4,
        "max_steps": 2,
        "save_steps": 1,
        "per_device_train_batch_size": 4,
    }
    pairs = (settings | changed).items()
    return [text for name, value in pairs for text in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """What the run left, to be changed: a run knows base and rows by their paths."""
    shutil.copytree(finished, tmp_path / "before")
    yield finished
    shutil.rmtree(finished)
    shutil.copytree(tmp_path / "before", finished)


@pytest.fixture
def again(folder: Path, quantkit: Any) -> Any:
    """Resume the run."""

    def resume(**changed: object) -> tuple[int, str]:
        code, _, err = quantkit("train", *flags(folder, **({"resume_from_checkpoint": "true", "overwrite": "true"} | changed)))
        return code, " ".join(err.split())

    return resume


@pytest.fixture
def weightless(again: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same on a base of noise, which nobody loads."""
    weights = folder / "Tiny-Llama" / "model.safetensors"
    begin = min(tensor.start for tensor in read_header(weights).tensors.values())
    content = weights.read_bytes()
    weights.write_bytes(content[:begin] + random.Random(0).randbytes(len(content) - begin))

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(modeling, "load_base", load)
    return again


def test_settings_rows_template_and_base_that_differ_are_named_at_once(weightless: Any, folder: Path) -> None:
    rows, template = folder / "rows.jsonl", folder / "Tiny-Llama" / "chat_template.jinja"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[1:]))
    template.write_text(template.read_text() + "{# another #}")
    code, err = weightless(learning_rate=1e-3)
    assert code == 2
    for name in ("data", "chat_template", "base"):
        assert f"; {name} was " in err
    assert "checkpoint-2: made by another run: learning_rate was 0.0002 and is 0.001; " in err
    assert "accept_changes=learning_rate,data,chat_template,base" in err


def test_another_configuration_is_another_base(weightless: Any, folder: Path) -> None:
    config = folder / "Tiny-Llama" / "config.json"
    config.write_text(config.read_text().replace("10000", "20000"))
    code, err = weightless()
    assert code == 2
    assert err.count(" was ") == 1
    assert "base was " in err


def test_libraries_and_lengths_that_differ_are_named(weightless: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.environment._version", lambda name: {"torch": "2.99"}.get(name, ""))
    code, err = weightless(max_steps=3)
    assert code == 2
    assert "max_steps was 2 and is 3; base was " in err
    assert "; torch was " in err
    code, err = weightless(max_steps=1)
    assert "checkpoint-2: 2 steps are done, this run is to have 1; raise max_steps" in err


def test_a_checkpoint_that_is_not_whole_is_skipped_or_refused(weightless: Any, folder: Path) -> None:
    (checkpoints,) = (folder / "artifacts" / ".checkpoints").iterdir()
    (checkpoints / "checkpoint-2" / "optimizer.pt").write_bytes(b"")
    code, err = weightless()
    assert code == 2
    assert "skipped a checkpoint that is not whole" in err
    assert "checkpoint-1: made by another run: base was " in err
    (checkpoints / "checkpoint-1" / "optimizer.pt").unlink()
    code, err = weightless()
    assert code == 3
    assert "no checkpoint is whole: " in err


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"optim": "adamv"}, "optim or report_to"), ({"compute_dtype": "float16"}, "compute_dtype is float16")],
)
def test_settings_that_training_has_no_use_for_are_told_at_once(changed: dict[str, str], said: str, weightless: Any) -> None:
    code, err = weightless(resume_from_checkpoint="false", **changed)
    assert code == 2
    assert said in err


def test_a_base_that_was_accepted_is_accepted_as_stored_and_as_loaded(again: Any, folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = folder / "Tiny-Llama" / "model.safetensors"
    save_file(
        {name: item * torch.tensor(1.01, dtype=item.dtype) for name, item in load_file(weights).items()},
        weights,
        {"format": "pt"},
    )
    code, err = again(accept_changes="base,max_steps", max_steps=3)
    assert code == 0, err
    (artifact,) = (path for path in (folder / "artifacts").iterdir() if not path.name.startswith("."))
    accepted = read_record(artifact).training["accepted_changes"]
    assert [change["field"] for change in accepted] == ["base", "max_steps"]
