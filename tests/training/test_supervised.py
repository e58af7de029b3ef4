"""Is the loss on supervised positions the full loss, for any decoder?"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, MixtralConfig

from quantkit.data import Collator, EncodedRow, PreparedData
from quantkit.errors import QuantkitError
from quantkit.training.evaluate import mean_loss
from quantkit.training.supervised import output_head, supervised_loss, supervised_positions_only
from tests.training.helpers import adapted, config, run

SMALL = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
CONFIGS = {
    "Llama": LlamaConfig(**SMALL, **HEADS),
    "Gemma2 with soft-capped logits": Gemma2Config(**SMALL, **HEADS, final_logit_softcapping=1.0),
    "GPT-2": GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2),
}
ROWS = [
    EncodedRow([5, 6, 7, 8, 9], [-100, -100, 7, 8, 9], 1),
    EncodedRow([3, 4, 5], [-100, -100, 5], 2),
    EncodedRow([9, 8, 7, 6], [9, 8, 7, 6], 3),
]


def loss_and_gradients(model: Any, *, narrow: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    batch = Collator(0)(ROWS)
    model.zero_grad()
    if narrow:
        labels = batch.pop("labels")
        with supervised_positions_only(output_head(model), labels):
            loss = supervised_loss(model(**batch, use_cache=False), labels)
    else:
        loss = model(**batch, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None}


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradients_are_those_of_the_full_loss(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float64).eval()
    full, narrow = (loss_and_gradients(model, narrow=on) for on in (False, True))
    torch.testing.assert_close(narrow[0], full[0], rtol=1e-6, atol=0, check_dtype=False)
    assert narrow[1].keys() == full[1].keys()
    for parameter, gradient in full[1].items():
        assert float((narrow[1][parameter] - gradient).norm() / gradient.norm()) < 1e-5, parameter


def test_the_head_sees_supervised_positions_only() -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["Llama"])
    seen: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(lambda _, __, output: seen.append(tuple(output.shape)))
    loss_and_gradients(model, narrow=True)
    assert seen == [(1, 3 + 1 + 3, 64)]


def test_a_model_whose_routers_have_a_loss_uses_its_own(tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path) -> None:
    routed = {"num_local_experts": 2, "num_experts_per_tok": 1, "vocab_size": 512}
    settings = MixtralConfig(**(SMALL | HEADS | routed), output_router_logits=True)
    model = AutoModelForCausalLM.from_config(settings)
    assert output_head(model) is None
    rows = PreparedData("arithmetic", data.train, data.evaluation[:1], "fingerprint", data.report)
    result = run(model, rows, config(max_steps=2), tokenizer, tmp_path)
    assert len(result.losses) == 2
    assert result.evaluation_loss_before is not None


def test_logits_of_all_positions_give_the_same_loss() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["Llama"], dtype=torch.float64)
    batch = Collator(0)(ROWS)
    labels = batch.pop("labels")
    torch.testing.assert_close(supervised_loss(model(**batch), labels), loss_and_gradients(model, narrow=True)[0])


def test_a_head_that_is_called_in_an_unusual_way_is_an_error() -> None:
    class Outputs:
        logits = torch.zeros(3, 4, 64)

    with pytest.raises(QuantkitError, match=r"logits of shape \(3, 4, 64\) for 7 supervised tokens"):
        supervised_loss(Outputs(), Collator(0)(ROWS)["labels"])


def test_the_mean_loss_weighs_every_token_the_same_and_disturbs_nothing(tiny_model: Path, data: Any) -> None:
    model = adapted(tiny_model, dropout=0.5).train()
    kept = {"batch_size": 3, "device": "cpu", "dtype": "float32"}
    one = mean_loss(model, data.train, Collator(0), **kept)
    assert one == pytest.approx(mean_loss(model, data.train, Collator(0), **(kept | {"batch_size": 24})), rel=1e-5)
    assert all(module.training for module in model.modules())


def test_measuring_the_loss_leaves_4_bit_weights_trainable(tiny_model: Path, data: Any) -> None:
    from transformers import BitsAndBytesConfig

    from quantkit.adapters import attach_adapter
    from quantkit.plan import AdapterPlan
    from quantkit.training.guards import check_gradients

    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=four_bit, dtype=torch.bfloat16)
    model = attach_adapter(base, AdapterPlan(r=4), seed=1)
    mean_loss(model, data.train[:2], Collator(0), batch_size=2, device="cpu", dtype="float32")
    model.train()
    model(**Collator(0)(data.train[:4])).loss.backward()
    check_gradients(model)
