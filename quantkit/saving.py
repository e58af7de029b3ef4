"""How does a finished model become an artifact that is whole, true and loads anywhere, or nothing at all?

Everything that can be known to be wrong is refused before the first byte: space, values, what the weights measure as. The
files are written into a temporary folder, read back there, and appear under their name in one rename. `save_pretrained`
alone writes NaN without a word, and leaves half a folder behind when the disk is full or the process dies.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError, VerificationError
from quantkit.files import new_folder, read_json, refuse_existing, write_json, write_text
from quantkit.headers import read_stored_weights
from quantkit.layout import format_bytes
from quantkit.spec import QuantizationSpec
from quantkit.storable import check_before_saving, make_generation_config_saveable, tensors_to_store

METADATA = "quantization_metadata.json"
CARD = "README.md"
SPARE_BYTES = 64 * 1024 * 1024
"""Room for tokenizer, configuration and card beside the weights."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def save_artifact(
    target: Path,
    *,
    model: Any,
    tokenizer: Any,
    record: Mapping[str, Any],
    card: Callable[[Mapping[str, Any]], str] | None = None,
    verify: Callable[[Path], Mapping[str, Any]] | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Save a model, or the adapter of a `PeftModel`, with tokenizer, record and card; return the record as written.

    `record` holds the JSON keys of an artifact's record; `kind`, `quantization`, `recipe` and `base` are checked against
    the model. `verify` gets the temporary folder, may load it, and returns what it measured, for `record["verification"]`.
    `card` renders README.md from the record (default: `quantkit.card.render_card`).

    Raises:
        UsageError: the target exists, there is not enough space, or record and model are of different kinds.
        VerificationError: values are not finite, or the weights, in memory or as read back, are not what the record says.
        WriteError: writing failed; nothing is left behind.
    """
    from quantkit.card import render_card

    target = Path(target)
    refuse_existing(target, overwrite=overwrite)
    checked = check_before_saving(model, record)
    require_space(target.parent, checked["bytes"] + SPARE_BYTES)
    dropped = make_generation_config_saveable(model)
    record = dict(record)
    with _no_bars(), new_folder(target, overwrite=overwrite) as folder:
        if record["kind"] == "adapter":
            _write_adapter(folder, model, record)
        else:
            model.save_pretrained(folder, max_shard_size=max_shard_size)
            _state_dtype(folder / "config.json", QuantizationSpec.from_dict(record["quantization"]))
        tokenizer.save_pretrained(folder)
        found = check_written(folder, model, record)
        verification = {**record.get("verification", {}), **checked, **found, **(dict(verify(folder)) if verify else {})}
        if dropped:
            verification["generation_config_without_effect"] = dropped
        record["verification"] = verification
        write_json(folder / METADATA, record)
        write_text(folder / CARD, (card or render_card)(record))
    return record


def finish_written(
    folder: Path, record: Mapping[str, Any], *, verify: Callable[[Path], Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Add record and card to a folder whose model was written tensor by tensor; return the record as written.

    Finite values are the writer's business; `verify` is as in `save_artifact`.

    Raises:
        VerificationError: the weights as read back are not what the record says.
    """
    from quantkit.card import render_card

    record = dict(record)
    found = check_written(folder, None, record)
    record["verification"] = {**record.get("verification", {}), **found, **(dict(verify(folder)) if verify else {})}
    write_json(folder / METADATA, record)
    write_text(folder / CARD, render_card(record))
    return record


def check_written(folder: Path, model: Any, record: Mapping[str, Any]) -> dict[str, Any]:
    """Read back what was written, with our own readers; return what it says.

    Raises:
        VerificationError: a pickle was written, adapter tensors or base differ, or the tensors are not what the record says.
    """
    pickles = sorted(path.name for path in folder.rglob("*") if path.suffix in PICKLES)
    if pickles:
        raise VerificationError(f"{pickles[0]} is a pickle, which can run code when read; artifacts hold safetensors only")
    if record["kind"] == "adapter":
        _check_written_adapter(folder, model, record["base"])
        return {"read_back": "all adapter tensors are equal, bit for bit"}
    stored = read_stored_weights(folder)
    if faults := stored.contradictions(QuantizationSpec.from_dict(record["quantization"])):
        raise VerificationError(f"the weights as written are not what the record says: {'; '.join(faults)}")
    return {"read_back": stored.describe()}


def require_space(folder: Path, needed: int) -> None:
    """Check that the file system of `folder`, which need not exist yet, has `needed` bytes left.

    Raises:
        UsageError: names both numbers.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UsageError(
            f"{folder}: the artifact needs {format_bytes(needed)}, {format_bytes(free)} are free; free some space or choose"
            " another output folder"
        )


def _write_adapter(folder: Path, model: Any, record: Mapping[str, Any]) -> None:
    base = record["base"]
    for config in model.peft_config.values():
        config.base_model_name_or_path = base["name_or_path"]
        config.revision = base.get("revision")
    model.save_pretrained(folder, save_embedding_layers=False)


def _state_dtype(path: Path, spec: QuantizationSpec) -> None:
    """Let a dense model's configuration name the type of its linear layers; transformers writes that of the first weight."""
    config = read_json(path)
    if not spec.is_quantized and config.get("dtype") != spec.weights_dtype:
        write_json(path, config | {"dtype": spec.weights_dtype})


def _check_written_adapter(folder: Path, model: Any, base: Mapping[str, Any]) -> None:
    import torch
    from safetensors.torch import load_file

    from quantkit.adapters import check_adapter_tensors

    expected = tensors_to_store(model, True)
    stored = load_file(folder / "adapter_model.safetensors")
    check_adapter_tensors(stored, set(expected), where="adapter as written")
    for name, tensor in stored.items():
        if not torch.equal(tensor, expected[name].detach().cpu()):
            raise VerificationError(f"adapter as written: {name} differs from the one in memory")
    config = read_json(folder / "adapter_config.json")
    for key, said in (("base_model_name_or_path", base["name_or_path"]), ("revision", base.get("revision"))):
        if config.get(key) != said:
            raise VerificationError(f"adapter as written: {key} is {config.get(key)!r}, the record says {said!r}")


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep the libraries' progress bars quiet."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()
