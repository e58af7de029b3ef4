"""Does the forecast count what autograd really holds after a forward pass?"""

from dataclasses import replace
from itertools import accumulate

import pytest
import torch

from quantkit.errors import UsageError
from quantkit.forecasting import RunSettings
from quantkit.forecasting.activations import activations
from quantkit.forecasting.adapters import adapter_size
from quantkit.plan import AdapterPlan, QuantizationPlan, Stage
from quantkit.spec import QuantizationSpec
from quantkit.training.tiles import tiled_cross_entropy, unchanged
from tests.forecasting.held import SIZES, held_after_forward, small_model

ROWS, LENGTH = 4, 64
LEARNT = ROWS * (LENGTH - 1)

CASES = [
    ("llama", "LoRa", 8, "all-linear", "float32", "none"),
    ("llama", "LoRa", 8, "all-linear", "float32", "selective"),
    ("llama", "LoRa", 8, "attention", "float32", "none"),
    ("llama", "LoRa", 8, "all-linear", "bfloat16", "none"),
    ("llama", "LoRa", 8, "all-linear", "bfloat16", "full"),
    ("llama", "DoRa", 8, "all-linear", "float32", "none"),
    ("llama", "DoRa", 8, "all-linear", "bfloat16", "selective"),
    ("llama", "VeRa", 16, "all-linear", "float32", "none"),
    ("llama", "VeRa", 128, "all-linear", "float32", "none"),
    ("llama", "NoPeft", 1, "all-linear", "float32", "none"),
    ("llama", "NoPeft", 1, "all-linear", "bfloat16", "selective"),
    ("llama", "LoRa", 8, "all-linear", "float32", "full:1"),
    ("llama", "LoRa", 8, "attention", "bfloat16", "full:1,selective:1"),
    ("llama", "NoPeft", 1, "all-linear", "bfloat16", "full:1,selective:1"),
    ("qwen3", "LoRa", 8, "all-linear", "float32", "selective:2"),
    ("qwen3", "LoRa", 8, "all-linear", "float32", "none"),
    ("phi3", "LoRa", 8, "all-linear", "float32", "none"),
    ("phi3", "NoPeft", 1, "all-linear", "bfloat16", "none"),
    ("gemma3_text", "DoRa", 8, "all-linear", "float32", "none"),
]
CAPPED = ("gemma2", "LoRa", 8, "all-linear", "float32", "none")
"""A family whose attention keeps its scores."""


@pytest.mark.parametrize("case", [*CASES, CAPPED], ids=lambda case: " ".join(map(str, case)))
def test_what_a_forward_pass_keeps_is_counted_to_three_hundredths(case):
    family, kind, rank, targets, arithmetic, recompute = case
    adapter = AdapterPlan(kind=kind, r=rank, target_modules=(targets,))
    held_in = "float32" if arithmetic == "float32" or kind == "NoPeft" else "bfloat16"
    model = small_model(family, getattr(torch, held_in))
    shape, held = held_after_forward(model, adapter, rows=ROWS, length=LENGTH, arithmetic=arithmetic, recompute=recompute)
    settings = RunSettings(
        plan=_dense(adapter, arithmetic),
        rows=ROWS,
        length=LENGTH,
        supervised=LEARNT,
        recompute=recompute,
        arithmetic=arithmetic,
    )
    counted = activations(shape, settings, adapter_size(shape, adapter))
    log_softmax = LEARNT * SIZES["vocab_size"] * 4
    counted_bytes = counted.kept(settings, shape.blocks) + counted.last + counted.weight_copies + log_softmax
    assert counted_bytes == pytest.approx(held, rel=0.06 if case is CAPPED else 0.03)


@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
def test_a_trained_heads_gradient_is_counted_as_tiles_form_it(arithmetic):
    """Its sum over the tiles beside that of one tile, which a logits' tile or, in bfloat16, a cast stands beside."""
    vocabulary, width, learnt = 2**16, 256, 200
    head, states = torch.nn.Linear(width, vocabulary, bias=False), torch.randn(learnt, width, requires_grad=True)
    adapter = AdapterPlan(kind="NoPeft")
    shape = replace(_shape(), vocabulary=vocabulary, width=width)
    found = RunSettings(plan=_dense(adapter, arithmetic), rows=1, length=learnt, device="cpu", arithmetic=arithmetic)
    counted = activations(shape, found, adapter_size(shape, adapter))
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
        torch.autocast("cpu", torch.bfloat16, enabled=arithmetic == "bfloat16"),
    ):
        tiled_cross_entropy(head, unchanged, states, torch.zeros(learnt, dtype=torch.long))
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    copies = vocabulary * width * 2 if arithmetic == "bfloat16" else 0  # autocast's of the weight, counted apart
    assert counted.logits + copies == pytest.approx(max(accumulate(sizes)), rel=0.05)
    assert counted.head_gradient == 4 * vocabulary * width


def test_recomputing_keeps_less_and_does_more_again():
    adapter = AdapterPlan(r=8)
    model_shape = _shape()
    counted, again = [], []
    for recompute in ("none", "selective:9", "selective", "full:7,selective:21", "full:21,selective:7", "full"):
        settings = RunSettings(plan=_dense(adapter, "float32"), arithmetic="float32", recompute=recompute)
        found = activations(model_shape, settings, adapter_size(model_shape, adapter))
        counted.append(found.kept(settings, model_shape.blocks))
        again.append([found.again(settings, number) for number in (0, 27)])
    assert counted == sorted(set(counted), reverse=True)
    mlp, block = again[2][0], again[-1][0]
    assert 0 < mlp < block
    assert again == [[0, 0], [mlp, 0], [mlp, mlp], [block, mlp], [block, mlp], [block, block]]


def test_naming_more_blocks_than_there_are_is_refused():
    settings = RunSettings(plan=_dense(AdapterPlan(), "float32"), recompute="full:20,selective:9")
    with pytest.raises(UsageError, match="recompute full:20,selective:9 names 29 decoder blocks, the model has 28"):
        activations(_shape(), settings, adapter_size(_shape(), AdapterPlan()))


def test_what_is_computed_again_keeps_its_input_on_the_device_where_the_rest_is_offloaded():
    adapter, shape = AdapterPlan(r=8), _shape()
    kept = {}
    for recompute in ("none", "selective:1", "full:1"):
        settings = RunSettings(plan=_dense(adapter, "bfloat16"), device="cuda", offload=True, recompute=recompute)
        kept[recompute] = activations(shape, settings, adapter_size(shape, adapter)).kept(settings, shape.blocks)
    assert kept["full:1"] == kept["selective:1"] == 2 * kept["none"]


def test_logits_are_counted_as_the_loss_takes_them():
    shape, adapter = _shape(), AdapterPlan(r=8)
    plan = _dense(adapter, "bfloat16")
    sizes = {}
    for logits in ("tiles", "chunks", "all"):
        settings = RunSettings(plan=plan, rows=8, length=4096, logits=logits)
        sizes[logits] = activations(shape, settings, adapter_size(shape, adapter)).logits
    positions = 8 * 4096
    assert sizes["all"] == positions * shape.vocabulary * (2 + 4 + 4 + 4)
    assert sizes["chunks"] == positions * shape.vocabulary * 2 + positions * shape.vocabulary // 8 * 14
    assert sizes["tiles"] < 2**26 * 14 / 4 + 1


def _shape():
    from quantkit.forecasting import read_shape

    return read_shape("meta-llama/Llama-3.2-3B")


def _dense(adapter, dtype):
    return QuantizationPlan(
        method="NoQuant", stage=Stage.BASE, spec=QuantizationSpec.dense("bfloat16"), adapter=adapter, compute_dtype=dtype
    )
