"""What is wrong is refused, in memory or as read back, and leaves nothing behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit import QuantizationSpec
from quantkit.errors import UsageError, VerificationError
from quantkit.saving import save_artifact


def broken_nan(model: Any, _record: dict[str, Any]) -> None:
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")


def broken_spec(_model: Any, record: dict[str, Any]) -> None:
    record["quantization"] = QuantizationSpec.dense("float16").to_dict()


def broken_kind(_model: Any, record: dict[str, Any]) -> None:
    record["kind"] = "adapter"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (
            broken_nan,
            (VerificationError, "model.layers.1.mlp.up_proj.weight holds values that are not finite; nothing was saved"),
        ),
        (broken_spec, (VerificationError, "the model in memory is not what its NoQuant spec says: weights_bits is 32, not 16")),
        (broken_kind, (UsageError, "the record says kind 'adapter', but the model carries no adapter; one folder is one kind")),
    ],
)
def test_a_model_that_is_not_what_the_record_says_is_refused(
    dense: Any, tokenizer: Any, tmp_path: Path, fault: Callable[..., None], expected: tuple[type[Exception], str]
) -> None:
    model, record = dense
    error, said = expected
    fault(model, record)
    with pytest.raises(error) as caught:
        save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)
    assert str(caught.value).startswith(said)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_was_never_trained_is_refused(adapter: Any, tokenizer: Any, tmp_path: Path) -> None:
    model, record = adapter
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.zero_()
    with pytest.raises(VerificationError, match="adapter to be saved: all B matrices are zero; the adapter was never trained"):
        save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_is_not_saved_as_a_model(adapter: Any, tokenizer: Any, tmp_path: Path) -> None:
    model, record = adapter
    with pytest.raises(UsageError, match="the record says kind 'model', but the model carries an adapter"):
        save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record | {"kind": "model"})


@pytest.mark.parametrize(
    "fault",
    [
        ("tensor", "adapter as written: .* differs from the one in memory"),
        ("name", "adapter as written: the adapter's tensors do not fit its configuration and base: 1 missing"),
        ("base", "adapter as written: base_model_name_or_path is 'elsewhere', the record says"),
        ("pickle", r"extra\.bin is a pickle, which can run code when read; artifacts hold safetensors only"),
    ],
)
def test_what_was_written_is_read_back(
    adapter: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: tuple[str, str]
) -> None:
    from safetensors.torch import load_file, save_file

    (damage, said), (model, record) = fault, adapter
    save = model.save_pretrained

    def damaged(folder: Path, **options: Any) -> None:
        save(folder, **options)
        tensors = load_file(folder / "adapter_model.safetensors")
        first = next(iter(tensors))
        if damage == "tensor":
            tensors[first][0, 0] += 1
        elif damage == "name":
            tensors["other"] = tensors.pop(first)
        elif damage == "base":
            config = json.loads((folder / "adapter_config.json").read_text())
            (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "elsewhere"}))
        else:
            (folder / "extra.bin").write_bytes(b"")
        save_file(tensors, folder / "adapter_model.safetensors")

    monkeypatch.setattr(model, "save_pretrained", damaged)
    with pytest.raises(VerificationError, match=said):
        save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_reach_the_disk_otherwise_than_in_memory_are_refused(
    dense: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, record = dense
    save = model.save_pretrained
    monkeypatch.setattr(model, "save_pretrained", lambda folder, **options: (model.half(), save(folder, **options)))
    with pytest.raises(VerificationError, match="the weights as written are not what the record says: weights_bits 32"):
        save_artifact(tmp_path / "out", model=model, tokenizer=tokenizer, record=record)
    assert list(tmp_path.iterdir()) == []
