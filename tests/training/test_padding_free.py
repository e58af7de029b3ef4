"""Do the levers leave a run's results alone, and are they off, with a line, where they would not?"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MambaConfig, RecurrentGemmaConfig

from quantkit.data import EncodedRow, PreparedData
from quantkit.errors import UsageError
from quantkit.layers import bare_model
from quantkit.training.padding_free import Levers, usable_levers
from tests.training.families import CONFIGS, HEADS, SMALL, family
from tests.training.helpers import adapted, config, run, trained

ON = {"padding_free": True, "prefix_sharing": True}
OFF = {"padding_free": False, "prefix_sharing": False, "loss_positions": "all"}


def levers(model: Any, **changes: Any) -> Levers:
    return usable_levers(model, config(**changes), list(range(3, 60)), device="cpu")


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "Bloom"])
def test_families_that_dispatch_their_attention_pass_the_trial(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = levers(family(name, torch.float32), packing=True)
    assert (found.padding_free, found.prefix_sharing, found.packing) == (True, True, True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["Llama", "Gemma 3 with sliding windows and two rotations"])
def test_they_pass_in_bfloat16_too_where_attention_is_computed_in_tiles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with torch.autocast("cpu", torch.bfloat16):
        found = levers(family(name, torch.float32))
    assert (found.padding_free, found.prefix_sharing) == (True, True)


OTHERS = {
    "positions by distance": (CONFIGS["Bloom"], "TypeError: "),
    "a state that runs on": (
        MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4),
        "give other logits",
    ),
    "a state beside attention": (
        RecurrentGemmaConfig(**SMALL, **HEADS, block_types=("recurrent", "attention"), attention_window_size=8),
        "",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_trained_padded_and_one_line_says_so(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings, reason = OTHERS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(settings).train()
    found = levers(model, packing=True)
    assert (found.padding_free, found.prefix_sharing, found.packing) == (False, False, False)
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("padding_free is off for this model (and with it prefix_sharing, packing): ")
    assert reason in lines[0]
    assert model.training


def test_sharing_alone_is_off_where_only_sharing_goes_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.training import attention

    right = attention._with_ancestors
    wrong = lambda states, block, number: right(states, block, number) * (2 if block.ancestors else 1)  # noqa: E731
    monkeypatch.setattr(attention, "_with_ancestors", wrong)
    found = levers(family("Llama", torch.float32))
    assert (found.padding_free, found.prefix_sharing) == (True, False)
    assert "prefix_sharing is off for this model: rows in one sequence give other logits" in capsys.readouterr().out


def test_a_model_with_a_loss_of_its_own_shares_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = family("gpt-oss with sinks", torch.float32)
    monkeypatch.setattr(model.config, "output_router_logits", True)  # other tests' models share it
    found = levers(model)
    assert (found.padding_free, found.prefix_sharing, found.supervised_only) == (True, False, False)
    assert "its own loss counts every token" in capsys.readouterr().out


def test_an_unknown_tail_is_said_and_only_tiles_are_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantkit.training.tiles.known_tails", lambda _: [])
    found = levers(family("Llama", torch.float32))
    assert found == Levers(padding_free=True, prefix_sharing=True, supervised_only=True)
    assert "the loss is not taken in tiles" in capsys.readouterr().out


def test_switches_switch() -> None:
    model = family("Llama", torch.float32)
    assert levers(model, **OFF) == Levers()
    assert levers(model, loss_positions="all") == Levers(padding_free=True, prefix_sharing=True)


def with_beginnings(data: PreparedData) -> PreparedData:
    """Put one of two system prompts before every row."""
    rows = [
        EncodedRow([40 + number % 2] * 12 + row.input_ids, [-100] * 12 + row.labels, row.row)
        for number, row in enumerate(data.train)
    ]
    return PreparedData("arithmetic", rows, data.evaluation, "other", data.report)


def test_a_run_gives_the_same_losses_and_weights_with_and_without(
    tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path
) -> None:
    rows = with_beginnings(data)
    settings = {"max_steps": 3, "gradient_accumulation_steps": 2}
    models = [adapted(tiny_model) for _ in range(3)]
    seen: list[int] = []
    bare_model(models[2]).model.embed_tokens.register_forward_hook(lambda _, __, output: seen.append(output.shape[1]))
    padded, flat, shared = (
        run(model, rows, config(**settings, **switches), tokenizer, tmp_path)
        for model, switches in zip(models, (OFF, ON | {"prefix_sharing": False}, ON), strict=True)
    )
    assert flat.losses == pytest.approx(padded.losses, rel=1e-5)
    assert shared.losses == pytest.approx(padded.losses, rel=1e-5)
    assert flat.tokens == padded.tokens == shared.tokens
    assert shared.response_tokens == padded.response_tokens
    assert (padded.padding_free, flat.prefix_sharing, shared.prefix_sharing) == (False, False, True)
    for name, weight in trained(models[0]).items():
        torch.testing.assert_close(trained(models[2])[name], weight, rtol=1e-3, atol=2e-4)
    assert bare_model(models[2]).config._attn_implementation == "sdpa"
    assert min(seen) < shared.tokens / 6 - 12


def test_packing_trains_on_every_row_of_an_epoch_in_fewer_batches(
    tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path
) -> None:
    settings = config(max_steps=-1, num_train_epochs=1, packing=True, max_length=128, per_device_train_batch_size=2)
    result = run(adapted(tiny_model), data, settings, tokenizer, tmp_path)
    assert result.packing
    assert result.tokens == sum(len(row.input_ids) for row in data.train)
    assert result.response_tokens == sum(row.supervised for row in data.train)
    assert result.steps < len(data.train) / 3


def test_packed_rows_are_laid_out_as_the_rows_of_any_batch_so_they_see_themselves_only(data: Any) -> None:
    from quantkit.training.layouts import FlatCollator
    from quantkit.training.order import WithRows

    collate = WithRows(FlatCollator(share=True))
    rows = data.train[:5]
    packed, single = collate([rows[:2], rows[2:]]), collate([[row] for row in rows])
    assert packed["layout"] == single["layout"]
    assert packed["layout"].tokens == sum(len(row.input_ids) for row in rows)
    assert all(torch.equal(packed[name], single[name]) for name in ("input_ids", "position_ids", "labels", "rows"))


def test_packing_without_padding_free_is_refused() -> None:
    with pytest.raises(UsageError, match="packing is on and padding_free is off"):
        config(packing=True, padding_free=False)
