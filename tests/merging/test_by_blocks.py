"""A dense folder that is run block by block says what the whole model says, and holds one block at a time."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from quantkit.errors import UsageError
from quantkit.merging.by_blocks import load_by_blocks
from quantkit.numerics.capture import find_blocks
from tests.bench import logits
from tests.merging.folders import model_folder


def whole(folder: Path, dtype: Any) -> torch.Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval())


@pytest.mark.parametrize("dtype", ["auto", "float32"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": False}, {"max_shard_size": "200KB"}, {"family": "gpt2"}],
    ids=["tied", "untied", "shards", "GPT-2"],
)
def test_it_is_bit_equal_to_the_whole_model_in_both_data_types(tmp_path, changes, dtype):
    folder = model_folder(tmp_path / "model", **changes)
    model = load_by_blocks(folder, dtype=dtype)
    assert torch.equal(logits(model), whole(folder, dtype))
    assert torch.equal(logits(model), whole(folder, dtype))  # and a second time


def test_only_the_block_that_runs_is_in_memory(tmp_path):
    model = load_by_blocks(model_folder(tmp_path / "model"))
    blocks, seen = list(find_blocks(model)[1]), []

    def look(*_: Any) -> None:
        seen.append([any(not item.is_meta for item in block.parameters()) for block in blocks])

    for block in blocks:
        block.register_forward_hook(look, prepend=True)
    logits(model)
    assert seen == [[True, False], [False, True]]
    assert all(item.is_meta for block in blocks for item in block.parameters())


def test_quantized_weights_and_tensors_that_are_converted_on_loading_are_left_to_other_loaders(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 64}
    config = MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, num_local_experts=2)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "experts")
    assert load_by_blocks(tmp_path / "experts") is None
    folder = model_folder(tmp_path / "model")
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | {"quantization_config": {"quant_method": "gptq"}}))
    assert load_by_blocks(folder) is None


def test_a_model_without_a_list_of_blocks_is_left_to_other_loaders(tmp_path, monkeypatch):
    def none(_: Any) -> Any:
        raise UsageError("no list of decoder blocks")

    monkeypatch.setattr("quantkit.numerics.capture.find_blocks", none)
    assert load_by_blocks(model_folder(tmp_path / "model")) is None
