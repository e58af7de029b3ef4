"""What did each weight of the training base really hold?

An adapter learnt against weights that were quantized, or at least cast to the computing data type. For every tensor that the
merged model will have, this says how it is read: dense ones as they are stored, in pieces; quantized ones decoded one layer
at a time, in float32. Loading the model and asking its layers gives the same numbers and needs all of them in memory.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantkit.errors import UsageError, VerificationError
from quantkit.headers import StoredTensor
from quantkit.merging.decoding import LEAVES, MARKS, StoredLayer, decode_layer
from quantkit.merging.model_facts import BaseFolder
from quantkit.merging.round_trip import held_in_4bit, held_in_int8
from quantkit.merging.tensorfiles import FLOATS, TORCH_DTYPES, read_tensor, row_chunks

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldTensor:
    """One tensor of the merged model, and how its value in the training base is had."""

    name: str
    """As in the files."""
    shape: tuple[int, ...]
    source: StoredTensor | None = None
    """A dense tensor's place."""
    decode: "Callable[[], Tensor] | None" = None
    """A quantized layer's weight, float32 `[out, in]`."""
    turned: bool = False
    """Whether the model keeps `[in, out]` of what `decode` gives as `[out, in]`."""
    computed_in: str | None = None
    """Data type to which the training base had cast a dense tensor; None: as stored."""

    @property
    def is_float(self) -> bool:
        """Whether the tensor is cast to the merged model's data type."""
        return self.source is None or self.source.dtype in FLOATS

    @property
    def stored_dtype(self) -> str:
        """Return the type on disk as safetensors spells it; of a quantized layer, float32."""
        return "F32" if self.source is None else self.source.dtype

    def value(self) -> "Tensor":
        """Return the whole tensor in float32: a linear weight as `[out, in]` if it was quantized, else as it is stored."""
        if self.decode is not None:
            return self.decode()
        assert self.source is not None
        return self._cast(read_tensor(self.source))

    def pieces(self) -> "Iterator[Tensor]":
        """Yield the tensor as the merged model keeps it, in float32 (or its own type, if it is no float), piece by piece."""
        if self.decode is not None:
            weight = self.decode()
            yield weight.T if self.turned else weight
            return
        assert self.source is not None
        for piece in row_chunks(self.source):
            yield self._cast(piece) if self.is_float else piece

    def _cast(self, piece: "Tensor") -> "Tensor":
        import torch

        return (piece if self.computed_in is None else piece.to(getattr(torch, self.computed_in))).to(torch.float32)


def held_tensors(
    base: BaseFolder, *, computed_in: str | None, load_kwargs: Mapping[str, Any] | None = None, device: str = "cpu"
) -> list[HeldTensor]:
    """Return the tensors of a base in the order of its files.

    `computed_in` is the data type in which the base was loaded for training; None takes every tensor as it is stored.
    `load_kwargs` are those by which a dense base was quantized while loading.

    Raises:
        UsageError: the base is stored in a format that cannot be decoded here.
        VerificationError: the tensors of a quantized layer are incomplete.
    """
    config = (load_kwargs or {}).get("quantization_config")
    stored = base.stored_format
    if stored is not None and stored not in LEAVES:
        raise UsageError(f"{base.folder}: weights stored as {stored} cannot be decoded here; {', '.join(LEAVES)} can")
    quantized = _quantized_modules(base, stored) if stored else {}
    modules = {base.names.get(f"{name}.weight", f"{name}.weight"): name for name in base.layers}
    found, done = [], set()
    for name, tensor in sorted(base.index.tensors.items(), key=lambda item: (str(item[1].file), item[1].start)):
        owner = quantized.get(name)
        if owner is not None:
            if owner not in done:
                done.add(owner)
                found.append(_stored_layer(base, owner, modules.get(f"{owner}.weight", ""), computed_in, device))
            continue
        module = modules.get(name)
        if module in base.quantized_on_loading and config is not None:
            turned = module in base.turned
            decode = _loader(tensor, config, computed_in or "float32", turned=turned, device=device)
            found.append(HeldTensor(name=name, shape=tensor.shape, decode=decode, turned=turned))
        else:
            found.append(HeldTensor(name=name, shape=tensor.shape, source=tensor, computed_in=computed_in))
    return found


def _quantized_modules(base: BaseFolder, stored: str) -> dict[str, str]:
    """Return tensor name → name of the quantized layer that it is part of."""
    marks = MARKS[stored]
    owners = {name.removesuffix(f".{mark}") for name in base.index.tensors for mark in marks if name.endswith(f".{mark}")}
    return {f"{owner}.{leaf}": owner for owner in owners for leaf in LEAVES[stored] if f"{owner}.{leaf}" in base.index.tensors}


def _loader(tensor: StoredTensor, config: Any, computed_in: str, *, turned: bool, device: str) -> "Callable[[], Tensor]":
    """Return what reads a dense weight and rounds it as transformers would have while loading."""
    import torch

    dtype = getattr(torch, computed_in)
    if not (getattr(config, "load_in_4bit", False) or getattr(config, "load_in_8bit", False)):
        raise UsageError(
            f"a base quantized while loading by {type(config).__name__} cannot be repeated here; bitsandbytes' can"
        )

    def decode() -> "Tensor":
        weight = read_tensor(tensor).to(dtype)
        weight = weight.T.contiguous() if turned else weight
        if config.load_in_8bit:
            return held_in_int8(weight, dtype=dtype, device=device)
        return held_in_4bit(
            weight,
            config.bnb_4bit_quant_type,
            double_quant=config.bnb_4bit_use_double_quant,
            dtype=dtype,
            device=device,
        )

    return decode


def _stored_layer(base: BaseFolder, owner: str, module: str, computed_in: str | None, device: str) -> HeldTensor:
    """Return one layer of a stored quantized base; its shape is the model's."""
    import torch

    stored = base.stored_format or ""
    if module not in base.layers:
        raise UsageError(f"{base.folder}: {owner} is stored as {stored} but is no linear layer of the model; it is not decoded")
    dtype = getattr(torch, computed_in or stored_dtype(base))
    leaves = {leaf: base.index.tensors[f"{owner}.{leaf}"] for leaf in LEAVES[stored] if f"{owner}.{leaf}" in base.index.tensors}
    outputs, inputs = base.layers[module]
    turned = module in base.turned
    layer = StoredLayer(leaves, base.config["quantization_config"], dtype, f"{base.folder}: {owner}", device)

    def decode() -> "Tensor":
        weight = decode_layer(layer, stored)
        if tuple(weight.shape) != (outputs, inputs):
            raise VerificationError(f"{layer.where}: decodes to {list(weight.shape)}; the model has {[outputs, inputs]} there")
        return weight

    shape = (inputs, outputs) if turned else (outputs, inputs)
    return HeldTensor(name=f"{owner}.weight", shape=shape, decode=decode, turned=turned)


def stored_dtype(base: BaseFolder) -> str:
    """Return the data type of a base's embeddings, in which its dense parts are stored."""
    tensor = base.stored(f"{base.embeddings}.weight")
    return TORCH_DTYPES[tensor.dtype] if tensor is not None and tensor.dtype in FLOATS else "float32"
