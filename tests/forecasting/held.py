"""What does autograd really hold after a forward pass of a training step? For comparison with what forecasts count."""

from contextlib import ExitStack
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from quantkit.adapters import attach_adapter
from quantkit.forecasting.reading import shape_of
from quantkit.forecasting.shape import ModelShape
from quantkit.plan import AdapterPlan
from quantkit.training.attention import laid_out, rows_apart
from quantkit.training.fused_adapters import fused_adapters
from quantkit.training.layouts import FlatCollator
from quantkit.training.recompute import recomputed
from quantkit.training.supervised import output_head, supervised_loss, supervised_positions_only
from quantkit.training.tiles import unchanged

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 640,
    "head_dim": 16,
    "tie_word_embeddings": True,
}


def small_model(family: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    """Return a model of random weights."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**SIZES, pad_token_id=0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def held_after_forward(
    model: Any, adapter: AdapterPlan, *, rows: int, length: int, arithmetic: str = "float32", recompute: str = "none"
) -> tuple[ModelShape, int]:
    """Return the model's shape and the bytes that autograd holds after the loss of rows of one length, no prefix shared."""
    shape = shape_of(model, "small")
    model.requires_grad_(False)
    model = attach_adapter(model, adapter, 1).train()
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(640, (length,), generator=generator).tolist() for _ in range(rows)]
    batch = FlatCollator()([{"input_ids": row, "labels": row} for row in ids])
    layout, labels = batch.pop("layout"), batch.pop("labels")
    weights = {item.untyped_storage().data_ptr() for item in (*model.parameters(), *model.buffers())}
    held: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with ExitStack() as stack:
        stack.enter_context(rows_apart(model))
        stack.enter_context(fused_adapters(model, arithmetic=arithmetic, notice=False))
        stack.enter_context(recomputed(model, recompute))
        stack.enter_context(laid_out(layout))
        stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=arithmetic == "bfloat16"))
        kept = stack.enter_context(supervised_positions_only(output_head(model), labels, unchanged))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
        loss = supervised_loss(model(**batch, use_cache=False), labels, kept=kept)
    assert loss.requires_grad
    return shape, sum(held.values())
