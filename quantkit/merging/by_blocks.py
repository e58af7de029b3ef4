"""What does a saved model say where the memory for all of it at once is not there, or not worth it?

The model is loaded as a user loads it, but onto torch's `meta` device, which reads no values: names, shapes and data types are
those that `from_pretrained` gives. What stands outside the decoder blocks is read then; a block's weights are read when it is
called and let go when it is done, in plain reads. The result is that of the whole model, bit for bit. Letting accelerate
offload the blocks to the disk gives the same and maps the files: all of their pages count as the process's memory at once.
"""

from functools import partial
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError
from quantkit.headers import StoredTensor, read_tensor_index
from quantkit.merging.model_facts import names_in_files
from quantkit.merging.tensorfiles import read_tensor

Place = tuple[Any, str]
"""A module and the name of a parameter or buffer of its own."""
Held = list[tuple[list[Place], StoredTensor, Any]]
"""Tensors of one block or of what is outside: where they go, tied ones to several places; their stored form; their shell."""


def load_by_blocks(folder: Path, *, dtype: str = "auto", device: str = "cpu", trust_remote_code: bool = False) -> Any | None:
    """Return a dense model's folder as a model that reads its decoder blocks from there, one at a time, whenever it is called.

    None where the model cannot be taken apart: quantized weights, tensors that are converted on loading, no list of blocks.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    from quantkit.bases import stored_format
    from quantkit.modeling import one_line
    from quantkit.numerics.capture import find_blocks

    if stored_format(str(folder)) is not None:
        return None
    with one_line(str(folder), "model"):
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, device_map={"": "meta"}, use_safetensors=True, trust_remote_code=trust_remote_code
        )
        with init_empty_weights(include_buffers=False):
            computed = AutoModelForCausalLM.from_config(model.config, trust_remote_code=trust_remote_code)
    try:
        name, blocks = find_blocks(model)
    except UsageError:
        return None
    if getattr(model, "_weight_conversions", None):
        return None
    tensors = read_tensor_index(folder).tensors
    names = names_in_files(model, tensors)
    stored = {key: tensors[file_name] for key, file_name in names.items() if file_name in tensors}
    values = dict(computed.named_buffers())
    owners: dict[str, Held] = {}
    for shell, places in _places(model):
        source = next((stored[key] for key in places if key in stored), None)
        spots = [_spot(model, key) for key in places]
        first = places[0]
        if source is None and first in values and not values[first].is_meta:
            for module, key in spots:
                module._buffers[key] = values[first].to(device)
        elif source is None or source.shape != tuple(shell.shape):
            return None
        else:
            owners.setdefault(_block_of(places, name), []).append((spots, source, shell))
    _bring(owners.pop("", []), device)
    if model.device.type == "meta":
        return None
    for number, block in enumerate(blocks):
        held = owners.get(str(number), [])
        block.register_forward_pre_hook(partial(_bring_block, held, device))
        block.register_forward_hook(partial(_let_go, held))
    return model.eval()


def _places(model: Any) -> list[tuple[Any, list[str]]]:
    """Return each parameter and buffer with its names; a tied one has several."""
    found: dict[int, tuple[Any, list[str]]] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        found.setdefault(id(tensor), (tensor, []))[1].append(name)
    return list(found.values())


def _spot(model: Any, name: str) -> Place:
    owner, _, key = name.rpartition(".")
    return model.get_submodule(owner), key


def _block_of(names: list[str], blocks: str) -> str:
    """Return the number of the block that all of these tensors' names stand in; empty for what is outside, or shared."""
    numbers = {name.removeprefix(f"{blocks}.").partition(".")[0] if name.startswith(f"{blocks}.") else "" for name in names}
    return numbers.pop() if len(numbers) == 1 else ""


def _bring(held: Held, device: str) -> None:
    from torch import nn

    for places, source, shell in held:
        value = read_tensor(source).to(device=device, dtype=shell.dtype)
        if isinstance(shell, nn.Parameter):
            value = nn.Parameter(value, requires_grad=False)
        _put(places, value)


def _put(places: list[Place], value: Any) -> None:
    for module, key in places:
        (module._parameters if key in module._parameters else module._buffers)[key] = value


def _bring_block(held: Held, device: str, *_: Any) -> None:
    _bring(held, device)


def _let_go(held: Held, *_: Any) -> None:
    for places, _source, shell in held:
        _put(places, shell)
