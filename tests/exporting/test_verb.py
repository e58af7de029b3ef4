"""`quantkit export` answers from headers, in a moment, and refuses what makes no sense."""

import json
import os
import subprocess
import sys

import pytest
import torch

from quantkit.numerics.grids import UniformGrid
from tests.exporting.folders import grid_folder

HEAVY = ("torch", "transformers", "peft", "bitsandbytes")
ADAPTER = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "some/Model", "target_modules": ["q_proj"]}


def test_answers_import_nothing_heavy(tiny_model, tmp_path):
    code = f"""
import sys
from quantkit_tools.cli import main
code = main(["export", {str(tiny_model)!r}]) or main(["export", {str(tiny_model)!r}, "--to", "gguf", "--dry-run"])
heavy = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"imports {{heavy}}" if heavy else code)
"""
    environment = os.environ | {"QUANTKIT_REGISTRY": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "16 or 32 bit" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_every_target_is_answered_at_once(tiny_model, export, exported):
    code, out, _ = export(tiny_model)
    assert code == 0
    for word in ("transformers --dequantize", "vllm", "gguf", "exact*", "--method AWQ --format awq"):
        assert word in out
    data = exported(tiny_model)
    assert data["source"] == "dense"
    assert data["targets"]["gguf"]["step"] == "convert"


@pytest.mark.parametrize("width", [60, 160])
def test_answers_fit_the_terminal(tiny_model, export, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for arguments in ((tiny_model,), (tiny_model, "--to", "gguf", "--dry-run"), ("--table",)):
        _, out, _ = export(*arguments)
        told = [line for line in out.splitlines() if not line.startswith(("not shown", str(tiny_model)))]
        assert [line for line in told if len(line) > width] == []


def test_a_dry_run_names_what_would_be_written_and_writes_nothing(tiny_model, export, root):
    code, out, _ = export(tiny_model, "--to", "gguf", "--dry-run")
    assert code == 0
    assert f"{root}/Tiny-Llama-base_NoQuant_w16_exportgguf_headbf16" in out
    assert not root.exists()


def test_no_way_is_exit_code_3_in_a_dry_run_and_a_route_is_an_error_without(small_model, tmp_path, export):
    grid = UniformGrid(3, 64, True, torch.bfloat16)
    folder = grid_folder(small_model, tmp_path / "Source", "compressed-tensors", grid)
    code, out, _ = export(folder, "--to", "awq", "--dry-run")
    assert code == 3
    assert "It does not fit: the AWQ format holds 4-bit weights; these have 3." in out
    code, _, err = export(folder, "--to", "awq")
    assert code == 2
    assert "--to awq: no. Route: It does not fit" in err


def test_what_is_one_already_is_loaded_and_left_alone(small_model, exported, export, root):
    assert exported(small_model, "--to", "transformers")["tokens"] == 256
    code, out, _ = export(small_model, "--to", "vllm")
    assert code == 0
    assert "nothing was written: it is read as it stands" in out
    assert not root.exists()


def test_what_transformers_reads_only_with_a_library_is_said_to_be_read_by_ours(small_model, tmp_path, export):
    folder = grid_folder(small_model, tmp_path / "Source", "gptq", UniformGrid(4, 64, True, torch.bfloat16))
    code, out, _ = export(folder, "--to", "transformers")
    assert code == 0
    assert "quantkit's own reader loads it (transformers wants gptqmodel, optimum)" in out


def test_an_adapter_is_answered_by_kind_and_base(tmp_path, exported, export):
    from safetensors.torch import save_file

    folder = tmp_path / "Adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER | {"use_dora": True}))
    save_file({"base_model.model.q_proj.lora_A.weight": torch.ones(4, 8)}, folder / "adapter_model.safetensors")
    assert "vLLM has no DoRA" in exported(folder)["targets"]["vllm"]["how"]
    code, _, err = export(folder, "--to", "awq")
    assert code == 2
    assert f"Fold it in first: `quantkit merge {folder}`" in err
    code, out, _ = export(folder, "--to", "transformers")
    assert code == 0
    assert "nothing was written" in out


def test_a_gguf_file_is_answered_from_its_header(tmp_path, exported, export):
    path = tmp_path / "model.gguf"
    key = b"general.file_type"
    value = (2).to_bytes(4, "little")
    path.write_bytes(
        b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
        + len(key).to_bytes(8, "little") + key + (4).to_bytes(4, "little") + value
    )  # fmt: skip
    assert exported(path)["source"] == "gguf-quantized"
    code, out, _ = export(path, "--to", "transformers")
    assert code == 0
    assert "gguf_file=" in out


def test_an_artifact_that_exists_is_not_replaced_unasked(small_model, tmp_path, export):
    folder = grid_folder(small_model, tmp_path / "Source", "awq", UniformGrid(4, 32, False, torch.bfloat16))
    assert export(folder, "--to", "gptq")[0] == 0
    code, _, err = export(folder, "--to", "gptq")
    assert code == 2
    assert "exists; choose another output folder or pass --overwrite" in err
    assert export(folder, "--to", "gptq", "--overwrite")[0] == 0


def test_memory_that_does_not_suffice_to_compare_is_said_before_anything_is_read(small_model, tmp_path, export, monkeypatch):
    from quantkit_tools.exporting import proof

    folder = grid_folder(small_model, tmp_path / "Source", "awq", UniformGrid(4, 32, False, torch.bfloat16))
    monkeypatch.setattr(proof, "free_bytes", lambda _: 1 << 20)
    code, _, err = export(folder, "--to", "gptq")
    assert code == 2
    assert "1.0 MiB are free; nothing is exported that was not compared" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name an artifact, a folder or a hub id; or --table"),
        (["x", "--to", "vlm"], "--to 'vlm': no such target. Did you mean 'vllm'? Known: transformers, vllm, gguf"),
        (
            ["x", "--to", "gguf", "--dequantize"],
            "--dequantize writes dense weights: it goes with --to transformers or --to vllm",
        ),
        (["x", "--to", "vllm", "--dtype", "float32"], "--dtype is the data type of dequantized weights; say --dequantize"),
        (
            ["x", "--to", "vllm", "--dequantize", "--dtype", "int8"],
            "--dtype 'int8': auto, bfloat16, float16 or float32 is wanted",
        ),
        (["x", "--to", "vllm", "--converter", "c"], "--converter converts to GGUF; say --to gguf, too"),
        (["./nothing/here"], "no such file or folder"),
    ],
)
def test_what_makes_no_sense_is_usage(export, arguments, told):
    code, _, err = export(*arguments)
    assert code == 2
    assert told in err


def test_the_whole_table_as_json(exported):
    from quantkit.exporting import TARGETS
    from quantkit.exporting.document import shipped_rows

    assert len(exported("--table")["table"]) == len(shipped_rows().sources) * len(TARGETS)


def test_a_format_that_is_not_read_here_has_no_way_but_its_16_bit_model(tmp_path, export):
    from safetensors.torch import save_file

    folder = tmp_path / "Odd"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "eetq", "weights": "int8"}}))
    tensors = {"layer.weight": torch.ones(4, 4, dtype=torch.int8), "layer.weight_scales": torch.ones(4)}
    save_file(tensors, folder / "model.safetensors")
    code, out, err = export(folder, "--to", "gptq", "--dry-run")
    assert code == 3, err
    assert "quantkit does not read this format. Start from the 16-bit model" in out


def test_what_could_not_be_told_is_asked_for(small_model):
    from dataclasses import replace

    from quantkit.errors import UsageError
    from quantkit.exporting import Rows
    from quantkit.methods import installed_methods
    from quantkit_tools.exporting.asked import Asked, Flags, found_at, holding_of
    from quantkit_tools.exporting.naming import dense_dtype, source_spec

    flags = Flags(artifact=str(small_model), to="gguf")
    found = found_at(flags, installed_methods())
    holding = holding_of(found, "Small", Rows())
    assert holding.stored is not None
    asked = Asked(holding=holding, detection=replace(found, spec=None), flags=flags)
    with pytest.raises(UsageError, match="Small: what its weights are could not be told, so no true record can be written"):
        source_spec(asked)
    assert dense_dtype(replace(asked, holding=replace(holding, config={"torch_dtype": "float16"}))) == "float16"
    assert dense_dtype(replace(asked, holding=replace(holding, config={}))) == "bfloat16"  # the head's
    headless = replace(holding, config={}, stored=replace(holding.stored, lm_head_dtype=None))
    with pytest.raises(UsageError, match="in which data type its dense weights are could not be told; say --dtype"):
        dense_dtype(replace(asked, holding=headless))
