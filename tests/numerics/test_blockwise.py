"""Block by block: what is captured, what the quantized model then computes, and going on after a kill."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from quantkit.errors import QuantkitError, UsageError
from quantkit.numerics.blockwise import BlockReport, BlockStore, quantize_blocks
from quantkit.numerics.capture import Block, find_blocks, matches, record_calls
from quantkit.numerics.error_feedback import error_feedback
from quantkit.numerics.grids import QuantizedWeight, UniformGrid, quantize

GRID = UniformGrid(4, 32)
LAYERS = {
    f"model.layers.{index}.{name}"
    for index in range(4)
    for name in (*(f"self_attn.{key}_proj" for key in "qkvo"), *(f"mlp.{key}_proj" for key in ("gate", "up", "down")))
}


@pytest.fixture
def model(tiny_model):
    hf_logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


def batches(count: int = 2, rows: int = 2, tokens: int = 24) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, 500, (rows, tokens), generator=generator)} for _ in range(count)]


def nearest(block: Block) -> dict[str, QuantizedWeight]:
    grid = UniformGrid(4, 32, scale_dtype=torch.float32)
    return {name: quantize(linear.weight.data, grid, layer=name) for name, linear in block.linears.items()}


def gptq(block: Block) -> dict[str, QuantizedWeight]:
    groups = block.groups()
    solved = {}
    for group, hessian in zip(groups, block.hessians(groups), strict=True):
        for name in group:
            solved[name] = error_feedback(block.linears[name].weight.data, hessian, GRID, layer=name).weight
    return solved


def store_in(folder, **settings) -> BlockStore[QuantizedWeight]:
    return BlockStore(folder, {"method": "GPTQ", "bits": 4} | settings, GRID.restore)


def test_every_linear_layer_of_every_block_is_solved_and_the_head_is_not(model):
    assert set(quantize_blocks(model, batches(), nearest)) == LAYERS


def test_running_blocks_one_by_one_gives_what_the_whole_model_gives(model):
    inputs = batches()
    seen = {}
    expected = [model.model(**batch, output_hidden_states=True).hidden_states for batch in inputs]

    def look(block: Block) -> dict[str, QuantizedWeight]:
        seen[block.index] = block.hidden
        return nearest(block)

    quantize_blocks(model, inputs, look, sequential=False)
    for index in range(4):
        for batch in range(2):
            assert torch.equal(seen[index][batch], expected[batch][index])


def test_later_blocks_are_calibrated_on_what_the_quantized_earlier_ones_emit(model):
    inputs = batches()
    seen, targets = {}, {}

    def look(block: Block) -> dict[str, QuantizedWeight]:
        seen[block.index], targets[block.index] = block.hidden, block.targets
        return nearest(block)

    expected = [model.model(**batch, output_hidden_states=True).hidden_states for batch in inputs]
    quantize_blocks(model, inputs, look, reference=True)
    after = [model.model(**batch, output_hidden_states=True).hidden_states for batch in inputs]
    for batch in range(2):
        assert torch.equal(seen[3][batch], after[batch][3])
        assert not torch.equal(seen[3][batch], expected[batch][3])
        assert torch.equal(targets[2][batch], expected[batch][3])


def test_hessians_are_those_of_the_layers_inputs_without_padding(model):
    ids = batches(1, 2, 8)[0]["input_ids"]
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    kept = []
    handle = model.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    model(input_ids=ids, attention_mask=mask)
    handle.remove()
    rows = kept[0][mask.bool()]
    found = {}

    def look(block: Block) -> dict[str, QuantizedWeight]:
        if block.index == 0:
            groups = block.groups()
            found["groups"] = groups
            found["hessian"] = block.hessians(groups)[-1]
        return nearest(block)

    quantize_blocks(model, [{"input_ids": ids, "attention_mask": mask}], look)
    assert torch.allclose(found["hessian"], 2 / 13 * rows.T @ rows, rtol=1e-4, atol=1e-6)
    assert [len(group) for group in found["groups"]] == [3, 1, 2, 1]


def test_error_feedback_leaves_less_output_error_than_rounding(tiny_model):
    errors = []
    for solve in (nearest, gptq):
        reports: list[BlockReport] = []
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        quantize_blocks(model, batches(4), solve, reference=True, report=reports.append)
        assert [report.index for report in reports] == [0, 1, 2, 3]
        errors.append(reports[-1].output_error)
    assert 0 < errors[1] < errors[0]


def test_a_killed_run_goes_on_at_the_last_finished_block_and_ends_the_same(tiny_model, tmp_path):
    def load() -> nn.Module:
        return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)

    whole = quantize_blocks(load(), batches(), gptq)

    def killed(block: Block) -> dict[str, QuantizedWeight]:
        if block.index == 2:
            raise KeyboardInterrupt
        return gptq(block)

    with pytest.raises(KeyboardInterrupt):
        quantize_blocks(load(), batches(), killed, store=store_in(tmp_path / "state"))
    reports: list[BlockReport] = []
    resumed = quantize_blocks(load(), batches(), gptq, store=store_in(tmp_path / "state"), report=reports.append)
    assert [report.resumed for report in reports] == [True, True, False, False]
    assert set(whole) == set(resumed)
    assert all(torch.equal(whole[name].codes, resumed[name].codes) for name in whole)
    assert all(torch.equal(whole[name].scale, resumed[name].scale) for name in whole)


def test_a_stored_block_that_was_damaged_is_solved_again(model, tmp_path):
    quantize_blocks(model, batches(), nearest, store=store_in(tmp_path))
    path = tmp_path / "block-0001" / "block.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    reports: list[BlockReport] = []
    quantize_blocks(model, batches(), nearest, store=store_in(tmp_path), report=reports.append)
    assert [report.resumed for report in reports] == [True, False, True, True]


def test_other_parameters_that_a_solver_changes_are_kept_for_resuming(tiny_model, tmp_path):
    def fold(block: Block) -> dict[str, QuantizedWeight]:
        block.module.input_layernorm.weight.data *= 2
        return nearest(block)

    logits = []
    for _ in range(2):
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        quantize_blocks(model, batches(), fold, store=store_in(tmp_path))
        logits.append(model(**batches()[0]).logits)
    assert torch.equal(logits[0], logits[1])


def test_stored_blocks_of_another_run_are_refused(model, tmp_path):
    quantize_blocks(model, batches(), nearest, store=store_in(tmp_path))
    with pytest.raises(UsageError, match="holds blocks of another run; bits, seed differ"):
        quantize_blocks(model, batches(), nearest, store=store_in(tmp_path, bits=3, seed=1))


def test_blocks_can_run_in_another_data_type_and_keep_their_own(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    seen = []

    def look(block: Block) -> dict[str, QuantizedWeight]:
        seen.append(next(block.module.parameters()).dtype)
        return gptq(block)

    layers = quantize_blocks(model, batches(), look, compute_dtype=torch.float32)
    assert set(seen) == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    name = "model.layers.3.mlp.up_proj"
    assert torch.equal(model.get_submodule(name).weight, layers[name].dequantize())


def test_ignored_layers_stay_as_they_are(model):
    before = model.model.layers[1].mlp.down_proj.weight.clone()
    layers = quantize_blocks(model, batches(), nearest, ignore=["down_proj", "re:.*layers\\.0\\..*"])
    assert "model.layers.1.mlp.down_proj" not in layers
    assert not any(".layers.0." in name for name in layers)
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight, before)


def test_blocks_with_masks_of_their_own_get_them():
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).eval()
    inputs = [{"input_ids": torch.randint(3, 60, (1, 16))}]
    expected = model.model(**inputs[0], output_hidden_states=True).hidden_states
    seen = {}

    def look(block: Block) -> dict[str, QuantizedWeight]:
        seen[block.index] = block.hidden
        return nearest(block)

    quantize_blocks(model, inputs, look, sequential=False)
    assert all(torch.equal(seen[index][0], expected[index]) for index in range(3))


def test_layers_that_cannot_be_captured_are_named(model):
    model.model.layers[2].mlp.extra = nn.Conv1d(4, 4, 3)
    with pytest.raises(
        UsageError, match=r"cannot be quantized: model\.layers\.2\.mlp\.extra \(Conv1d\); put them on the ignore"
    ):
        quantize_blocks(model, batches(), nearest)
    quantize_blocks(model, batches(), nearest, ignore=["extra"])


def test_layers_that_no_token_reaches_are_named(model):
    model.model.layers[1].mlp.spare = nn.Linear(4, 4)
    with pytest.raises(UsageError, match=r"no calibration token reaches model\.layers\.1\.mlp\.spare"):
        quantize_blocks(model, batches(), gptq)


def test_a_solver_that_leaves_a_layer_out_is_an_error(model):
    with pytest.raises(QuantkitError, match=r"the solver returned nothing for model\.layers\.0\.mlp\.up_proj"):
        quantize_blocks(model, batches(), lambda block: {k: v for k, v in nearest(block).items() if "up_proj" not in k})


def test_an_output_that_is_not_finite_is_an_error(model):
    model.model.layers[1].mlp.down_proj.register_forward_hook(lambda _, __, output: output * float("inf"))
    with pytest.raises(QuantkitError, match=r"the output of model\.layers\.1 is not finite"):
        quantize_blocks(model, batches(), nearest)


def test_there_must_be_text_and_blocks(model):
    with pytest.raises(UsageError, match="there is no calibration text"):
        quantize_blocks(model, [], nearest)
    with pytest.raises(UsageError, match="Linear has no list of decoder blocks"):
        find_blocks(nn.Linear(2, 2))
    empty = batches(1)[0] | {"attention_mask": torch.zeros(2, 24)}
    with pytest.raises(UsageError, match="a calibration batch has no token that counts"):
        record_calls(model, list(model.model.layers), [empty])


class Skipping(nn.Module):
    """Hands its blocks half of the width each."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(2, 2)])

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        first = self.blocks[0](torch.zeros(1, 3, 4))
        return self.blocks[1]((first[0] if isinstance(first, tuple) else first)[..., :2])


class InTuples(nn.Module):
    """Its blocks return tuples, as older models' do."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([TupleBlock(), TupleBlock()])

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        hidden = torch.ones(*input_ids.shape, 32)
        for block in self.blocks:
            hidden = block(hidden)[0]
        return hidden


class TupleBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.linear(hidden_states),)


def test_blocks_that_do_not_follow_each_other_are_refused():
    with pytest.raises(UsageError, match="Skipping does not hand each decoder block's output to the next"):
        quantize_blocks(Skipping(), batches(1), nearest)


def test_blocks_that_return_tuples_are_understood():
    assert set(quantize_blocks(InTuples(), batches(1), nearest)) == {"blocks.0.linear", "blocks.1.linear"}


def test_patterns_match_endings_wildcards_and_expressions():
    name = "model.layers.3.mlp.down_proj"
    assert matches(name, ["down_proj"])
    assert matches(name, ["model.layers.*.mlp.*"])
    assert matches(name, ["re:.*layers.3.*"])
    assert not matches(name, ["proj", "layers.3"])
