"""What is called exact is: the same codes in another layout, and dense weights that give the same logits, bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantkit.numerics.grids import UniformGrid
from quantkit_registry.records import read_record
from quantkit_registry.store import Registry
from quantkit_registry.verify import verify
from tests.exporting.folders import bnb_folder, finished, fp8_folder, grid_folder

BF16 = torch.bfloat16
SYMMETRIC, ASYMMETRIC = UniformGrid(4, 64, True, BF16, "mse"), UniformGrid(4, 32, False, BF16)
REPACKED = [
    ("gptq", SYMMETRIC, "compressed-tensors"),
    ("gptq", SYMMETRIC, "awq"),
    ("gptq", UniformGrid(3, 64, True, BF16), "compressed-tensors"),
    ("gptq", ASYMMETRIC, "awq"),
    ("awq", ASYMMETRIC, "gptq"),
    ("awq", UniformGrid(4, -1, False, torch.float16), "compressed-tensors"),
    ("compressed-tensors", SYMMETRIC, "gptq"),
    ("compressed-tensors", SYMMETRIC, "awq"),
    ("compressed-tensors", ASYMMETRIC, "awq"),
    ("compressed-tensors", UniformGrid(8, -1, True, BF16), "gptq"),
]


@pytest.mark.parametrize("case", REPACKED, ids=lambda case: f"{case[0]} {case[1].bits} bit to {case[2]}")
def test_the_same_grid_in_another_layout(small_model, tmp_path, exported, case):
    source, grid, target = case
    folder = grid_folder(small_model, tmp_path / "Source", source, grid)
    written = exported(folder, "--to", target)
    assert written["checked"] == {"equal_codes": 147456, "max_logit_difference": 0.0}
    record = read_record(Path(written["artifact"]))
    method = {"gptq": "GPTQ", "awq": "AWQ", "compressed-tensors": "unknown"}[source]  # which nothing in such a folder tells
    assert (record.quantization.format, record.quantization.method) == (target, method)
    assert record.quantization.weights_bits == grid.bits
    assert record.verification["export"]["outcome"] == "exact"
    assert (Path(written["artifact"]) / "tokenizer.json").is_file()


def test_there_and_back_gives_the_files_tensors_again(small_model, tmp_path, exported, root):
    folder = grid_folder(small_model, tmp_path / "Source", "gptq", SYMMETRIC)
    there = exported(folder, "--to", "compressed-tensors")
    back = exported(there["name"], "--to", "gptq")
    first, last = (load_file(Path(path) / "model.safetensors") for path in (folder, back["artifact"]))
    assert set(first) == set(last)
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert read_record(Path(back["artifact"])).parents[0].name == there["name"]


def test_a_method_that_the_folder_does_not_tell_can_be_stated(small_model, tmp_path, exported):
    folder = grid_folder(small_model, tmp_path / "Source", "compressed-tensors", SYMMETRIC)
    assert exported(folder, "--to", "gptq", "--method", "autoround")["name"].startswith(
        "Source-base_AutoRound_w4_g64_exportgptq"
    )


def test_layers_left_out_stay_dense_in_the_other_layout(small_model, tmp_path, exported):
    folder = grid_folder(small_model, tmp_path / "Source", "compressed-tensors", SYMMETRIC, leave_out=("lm_head", "down_proj"))
    written = exported(folder, "--to", "gptq")
    stated = json.loads((Path(written["artifact"]) / "config.json").read_text())["quantization_config"]
    assert stated["modules_to_not_convert"] == [f"model.layers.{index}.mlp.down_proj" for index in range(1)]


@pytest.mark.parametrize(
    ("source", "dtype"),
    [("nf4", "auto"), ("nf4", "float32"), ("gptq", "auto"), ("awq", "float32"), ("compressed-tensors", "auto")],
)
def test_dense_weights_are_those_that_the_layers_compute_with(small_model, tmp_path, exported, source, dtype):
    if source == "nf4":
        folder = bnb_folder(
            small_model, tmp_path / "Source", load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=BF16,
        )  # fmt: skip
    else:
        folder = grid_folder(small_model, tmp_path / "Source", source, ASYMMETRIC)
    written = exported(folder, "--to", "transformers", "--dequantize", "--dtype", dtype)
    assert (written["checked"]["max_logit_difference"], written["checked"]["dequantized_layers"]) == (0.0, 7)
    config = json.loads((Path(written["artifact"]) / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == ("bfloat16" if dtype == "auto" else "float32")
    assert written["name"].endswith("_mergedbf16" if dtype == "auto" else "_mergedfp32")


def test_activations_that_are_no_longer_rounded_are_said(small_model, tmp_path, exported):
    folder = grid_folder(
        small_model, tmp_path / "Source", "compressed-tensors", UniformGrid(8, -1, True, BF16), activations_bits=8
    )
    written = exported(folder, "--to", "vllm", "--dequantize")
    assert written["answer"]["outcome"] == "lossy"
    assert 0 < written["checked"]["mean_kl"] < 0.05
    card = (Path(written["artifact"]) / "README.md").read_text()
    assert "**It is not the same model**" in card


def test_fp8_blocks_become_the_weights_that_transformers_makes_of_them(small_model, tmp_path, exported):
    written = exported(fp8_folder(small_model, tmp_path / "Source"), "--to", "transformers", "--dequantize")
    assert written["answer"]["outcome"] == "lossy"
    assert (written["checked"]["max_logit_difference"], written["checked"]["dequantized_layers"]) == (0.0, 7)


def test_fp8_rows_become_dense_and_activations_are_no_longer_rounded(small_model, tmp_path, exported):
    from transformers import AutoModelForCausalLM

    from quantkit.backends.compressed_tensors import compress_model
    from quantkit.numerics.float8 import quantize_float8

    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=BF16)
    layers = {
        name: quantize_float8(part.weight.data, BF16)
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and name != "lm_head"
    }
    folder = finished(compress_model(model, layers, activations_bits=8), small_model, tmp_path / "Source")
    written = exported(folder, "--to", "transformers", "--dequantize")
    assert written["answer"]["outcome"] == "lossy"
    assert 0 < written["checked"]["mean_kl"] < 0.05


def test_int8_of_bitsandbytes_is_lossy_in_16_bit(small_model, tmp_path, exported):
    folder = bnb_folder(small_model, tmp_path / "Source", load_in_8bit=True)
    written = exported(folder, "--to", "transformers", "--dequantize")
    assert written["answer"]["outcome"] == "lossy"
    assert 0 < written["checked"]["mean_kl"] < 0.05


def test_an_export_is_an_artifact_like_any_other(small_model, tmp_path, exported, root):
    folder = grid_folder(small_model, tmp_path / "Source", "awq", ASYMMETRIC)
    for arguments in (("--to", "gptq"), ("--to", "transformers", "--dequantize")):
        exported(folder, *arguments)
    registry = Registry(root)
    names = [artifact.name for artifact in registry.artifacts()]
    assert names == [
        "Source-base_AWQ_w4_g32_exportdense_headbf16_mergedbf16",
        "Source-base_AWQ_w4_g32_exportgptq_headbf16",
    ]
    from quantkit.methods import installed_methods

    for artifact in registry.artifacts():
        checks = verify(registry, artifact, claims=installed_methods().claims())
        assert not [check for check in checks if check.outcome == "failed"]


def test_a_marked_artifact_stays_marked(small_model, tmp_path, exported, export):
    from quantkit.files import write_json, write_manifest

    folder = grid_folder(small_model, tmp_path / "Source", "awq", ASYMMETRIC)
    first = Path(exported(folder, "--to", "gptq")["artifact"])
    record = json.loads((first / "quantization_metadata.json").read_text())
    record["verification"]["gate"] = {"outcome": "failed", "reasons": ["mean KL 2.1 is above 0.5"]}
    write_json(first / "quantization_metadata.json", record)
    write_manifest(first)
    code, _, err = export(first, "--to", "compressed-tensors")
    assert code == 0
    assert "is marked, as its source is: mean KL 2.1 is above 0.5" in err
    (second,) = first.parent.glob("*exportct*")
    assert read_record(second).verification["gate"]["outcome"] == "failed"
    assert "**Marked**: mean KL 2.1 is above 0.5" in (second / "README.md").read_text()


def test_the_card_says_where_it_comes_from(small_model, tmp_path, exported):
    folder = grid_folder(small_model, tmp_path / "Source", "awq", ASYMMETRIC)
    card = (Path(exported(folder, "--to", "compressed-tensors")["artifact"]) / "README.md").read_text()
    assert "`Source`, which holds int4 (awq) weights, in the layout of compressed-tensors: the same codes" in card
    assert "by which options is not recorded" in card


def test_what_is_not_exact_is_not_kept(small_model, tmp_path, export, root, monkeypatch):
    from quantkit.exporting import grids

    folder = grid_folder(small_model, tmp_path / "Source", "awq", ASYMMETRIC)
    honest = grids.repack_model

    def tampered(model, layers, target, options):
        name = next(iter(layers))
        codes = layers[name].codes.clone()
        codes[0, 0] = -codes[0, 0] - 1
        from dataclasses import replace

        return honest(model, {**layers, name: replace(layers[name], codes=codes)}, target, options)

    monkeypatch.setattr(grids, "repack_model", tampered)
    code, _, err = export(folder, "--to", "gptq")
    assert code == 3
    assert "the export was to be exact and is not" in err
    assert list(root.glob("*")) == []


def test_codes_are_compared_besides_logits(small_model):
    from dataclasses import replace

    from transformers import AutoModelForCausalLM

    from quantkit.errors import VerificationError
    from quantkit.exporting.grids import require_equal
    from tests.exporting.folders import rounded

    layers = rounded(AutoModelForCausalLM.from_pretrained(small_model, dtype=BF16), SYMMETRIC)
    name = next(iter(layers))
    assert require_equal(layers, dict(layers)) == 147456
    middle = {key: replace(q, zero_point=torch.zeros(q.scale.shape, dtype=torch.int8)) for key, q in layers.items()}
    assert require_equal(layers, middle) == 147456  # zero points in the middle are none
    with pytest.raises(VerificationError, match=f"{name} is quantized on one side only"):
        require_equal(layers, {key: q for key, q in layers.items() if key != name})
    moved = replace(layers[name], zero_point=torch.ones(layers[name].scale.shape, dtype=torch.int8))
    with pytest.raises(VerificationError, match=f"{name} does not hold the codes and scales that it was given"):
        require_equal(layers, {**layers, name: moved})


def test_folders_of_several_groups_are_not_rewritten(small_model, tmp_path, export):
    folder = grid_folder(small_model, tmp_path / "Source", "compressed-tensors", SYMMETRIC)
    config = json.loads((folder / "config.json").read_text())
    groups = config["quantization_config"]["config_groups"]
    groups["group_1"] = dict(groups["group_0"], targets=["re:.*down_proj"])
    (folder / "config.json").write_text(json.dumps(config))
    for arguments in (("--to", "gptq"), ("--to", "transformers", "--dequantize")):
        code, _, err = export(folder, *arguments)
        assert code == 2
        assert "Its layers differ: they stand in 2 groups (group_0, group_1)" in err


def test_values_that_are_not_finite_are_not_written(small_model, tmp_path, export, root):
    folder = grid_folder(small_model, tmp_path / "Source", "awq", ASYMMETRIC)
    tensors = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
    tensors["model.layers.0.mlp.up_proj.scales"][0, 0] = float("inf")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    code, _, err = export(folder, "--to", "transformers", "--dequantize")
    assert code == 3
    assert "model.layers.0.mlp.up_proj.weight: holds values that are not finite" in err
    assert list(root.glob("*")) == []
