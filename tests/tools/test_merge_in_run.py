"""At a run's end adapters are folded in tensor by tensor: the same weights, less memory, and a kill loses nothing."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from quantkit.files import verify_manifest
from quantkit.merging import fold_adapters
from quantkit.merging.job import MergeJob
from quantkit.methods import Methods
from quantkit_registry.records import read_record
from quantkit_tools.cli import run_verb
from quantkit_tools.merging import in_run

GPTQ = ["--group-size", 32, "--calib-rows", 8, "--calib-length", 64]
BASES: dict[str, list[object]] = {
    "NF4": ["--quant-method", "QLORA", "--peft-config", "LoRa"],
    "NF4, DoRA": ["--quant-method", "BNB4BIT", "--peft-config", "DoRa"],
    "dense, VeRA": ["--quant-method", "NoQuant", "--peft-config", "VeRa"],
    "compressed-tensors": ["--quant-method", "RTN", "--group-size", 32],
    "GPTQ": ["--quant-method", "GPTQ", "--format", "gptq", *GPTQ],
    "AWQ": ["--quant-method", "AWQ", "--format", "awq", *GPTQ],
}


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Fold the trained model in memory as well, when it has been observed; filled when a run merges."""
    found: dict[str, torch.Tensor] = {}
    observe = in_run.observe_reference

    def observed(model: Any, rows: Any) -> Any:
        reference = observe(model, rows)
        found.update(fold_adapters(model).state_dict())
        return reference

    monkeypatch.setattr(in_run, "observe_reference", observed)
    return found


@pytest.mark.parametrize("flags", BASES.values(), ids=BASES.keys())
def test_what_is_saved_is_the_merge_in_memory_bit_for_bit(
    flags: list[object], settings: list[object], read_json: Any, folded: dict[str, torch.Tensor]
) -> None:
    artifact = Path(read_json("train", *settings, *flags, "--save-dtype", "float32")["artifact"])
    record = read_record(artifact)
    assert record.verification["merge"]["layers_changed"] == 28
    assert record.verification["gate"]["outcome"] in ("passed", "failed")
    stages = [stage["stage"] for stage in record.memory["stages"]]
    assert stages[-5:] == ["train", "observe adapter", "prepare merge", "merge", "compare"]
    saved = load_file(artifact / "model.safetensors")
    assert {name for name, tensor in saved.items() if not torch.equal(tensor, folded[name])} == set()


def test_what_the_files_do_not_tell_is_folded_in_in_memory_and_said_to_be(settings: list[object], quantkit: Any) -> None:
    """PiSSA moves the largest singular values out of the base when training begins."""
    code, out, _ = quantkit("train", *settings, "--init-lora-weights", "pissa", "--save-dtype", "float32", "--json")
    assert code in (0, 3)
    record = read_record(Path(json.loads(out)["artifact"]))
    assert "max_abs_logit_difference" in record.verification["merge"]
    assert record.verification["reload"]["max_abs_logit_difference"] == 0.0


def test_a_method_with_a_merge_of_its_own_is_asked_for_it(
    settings: list[object], quantkit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, own = [], Methods.post_train_merge

    def merge(methods: Methods, plan: Any, model: Any) -> Any:
        asked.append(plan.method)
        return own(methods, plan, model)

    monkeypatch.setattr(Methods, "post_train_merge", merge)
    monkeypatch.setattr(Methods, "folds_exactly", lambda *_: False)
    code, out, err = quantkit("train", *settings, "--quant-method", "QLORA", "--json")
    assert code == 0, err
    assert asked == ["QLORA"]
    assert "QLORA folds adapters in by a hook of its own: in memory" in " ".join(err.split())
    counted = read_record(Path(json.loads(out)["artifact"])).memory["forecast"]["moments"]
    assert [moment["name"] for moment in counted][-2:] == ["merge", "save"]


def test_a_model_that_neither_fits_nor_runs_block_by_block_is_saved_unjudged_and_said_to_be(
    settings: list[object], quantkit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantkit_tools.merging.check.load_by_blocks", lambda *_, **__: None)
    monkeypatch.setattr("quantkit_tools.merging.check.free_bytes", lambda _: 1)
    code, out, err = quantkit("train", *settings, "--json")
    assert code == 0, err
    assert "fidelity of the merge not measured: loading needs" in err
    assert read_record(Path(json.loads(out)["artifact"])).verification["gate"]["outcome"] == "not judged"


def _killed_at(point: Callable[[], None], flags: list[object]) -> None:
    """Run `quantkit train` in a copy of this process in which `point` sets the trap; it must die there, without a goodbye."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            point()
            run_verb("train", [str(flag) for flag in flags])
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def _in_the_folding() -> None:
    pieces, done = MergeJob._pieces, []

    def die(self: Any, entry: Any) -> Any:
        done.append(entry)
        if len(done) == 5:
            os._exit(9)
        return pieces(self, entry)

    MergeJob._pieces = die  # type: ignore[method-assign]


def _in_the_comparison() -> None:
    in_run.check_merged = lambda *_: os._exit(9)  # type: ignore[assignment]


@pytest.mark.parametrize(("point", "named"), [(_in_the_folding, False), (_in_the_comparison, True)])
def test_a_run_that_is_killed_in_its_merge_goes_on_from_the_finished_adapter(
    point: Callable[[], None], named: bool, settings: list[object], read_json: Any, tmp_path: Path
) -> None:
    flags = [*settings, "--quant-method", "QLORA"]
    _killed_at(point, flags)
    root = tmp_path / "artifacts"
    assert not list(root.glob("Tiny*"))
    (checkpoint,) = root.glob(".checkpoints/*/checkpoint-2")
    verify_manifest(checkpoint)
    resume = ["--resume-from-checkpoint"]
    if named:
        resume.append(shutil.copytree(checkpoint, tmp_path / "elsewhere"))
        (checkpoint / "adapter_model.safetensors").write_bytes(b"of another run")
    artifact = Path(read_json("train", *flags, *resume)["artifact"])
    record = read_record(artifact)
    assert (record.training["resumed_from"], record.training["steps"]) == (2, 2)
    assert not checkpoint.exists()
    assert [path.name for path in root.iterdir() if path.name != ".checkpoints"] == [artifact.name]
    saved = load_file(artifact / "model.safetensors")
    shutil.rmtree(root)
    straight = load_file(Path(read_json("train", *flags)["artifact"]) / "model.safetensors")
    assert saved.keys() == straight.keys()
    assert all(torch.equal(tensor, straight[name]) for name, tensor in saved.items())


def test_a_merge_that_predicts_something_else_is_not_saved_and_its_adapter_can_be_kept(
    settings: list[object], quantkit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("quantkit_tools.merging.check.LARGEST_MEAN_KL", -1.0)
        code, _, err = quantkit("train", *settings, "--quant-method", "QLORA")
    assert code == 3
    assert "the merged model is not the one that was trained on QLORA" in err
    (checkpoint,) = (tmp_path / "artifacts").glob(".checkpoints/*/checkpoint-2")
    assert f"the trained adapter is in {checkpoint}; --resume-from-checkpoint {checkpoint} goes on from there" in err
    keep = ["--resume-from-checkpoint", checkpoint, "--no-merge-after-train"]
    code, out, err = quantkit("train", *settings, "--quant-method", "QLORA", *keep, "--json")
    assert code == 0, err
    kept = Path(json.loads(out)["artifact"])
    assert read_record(kept).training["resumed_from"] == 2
    for name, tensor in load_file(checkpoint / "adapter_model.safetensors").items():
        assert torch.equal(tensor, load_file(kept / "adapter_model.safetensors")[name])


def test_a_base_from_the_hub_is_folded_into_as_it_lies_in_the_cache(
    settings: list[object], tiny_model: Path, tmp_path: Path
) -> None:
    """Nothing is asked of the network for it: main may have moved on since the run began."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "home" / "hub" / "models--org--Tiny-Llama"
    shutil.copytree(tiny_model, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    settings[settings.index("--model-name-or-path") + 1] = "org/Tiny-Llama"
    command = [sys.executable, "-m", "quantkit_tools.cli", "train", *map(str, settings), "--quant-method", "QLORA", "--json"]
    offline = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stderr
    record = read_record(Path(json.loads(done.stdout)["artifact"]))
    assert record.base.name_or_path == "org/Tiny-Llama"
    assert record.verification["merge"]["base_fingerprint"] == record.base.fingerprint
    assert record.verification["merge"]["layers_changed"] == 28
