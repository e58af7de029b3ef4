"""What must be known of a model to merge into its files: its layers, its head, which names mean the same tensor?

Read from the configuration alone, on torch's `meta` device: names and shapes, no values. Guessing layers from tensor names
would take a mixture-of-experts router for a linear layer, and quantize it where the loader does not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError
from quantkit.headers import StoredTensor, TensorIndex, read_object, read_tensor_index


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFolder:
    """A model folder: its tensors, its configuration, and what the configuration says about its modules."""

    folder: Path
    config: dict[str, Any]
    index: TensorIndex
    layers: Mapping[str, tuple[int, int]]
    """Linear layer, output head included, to (out, in)."""
    turned: frozenset[str]
    """Layers whose weight is kept as [in, out]: GPT-2's `Conv1D`."""
    head: str
    """Module name of the output head; empty for none."""
    embeddings: str
    tied: bool
    """Whether head and embeddings are one tensor."""
    quantized_on_loading: frozenset[str]
    """Layers that the recipe quantizes while loading."""
    names: Mapping[str, str]
    """Tensor name in the model to its name in the files, where the two differ or `index` has it."""
    buffers: frozenset[str]
    skeleton: Any = field(repr=False)
    """The model on `meta`, its quantized layers replaced."""

    def stored(self, name: str) -> StoredTensor | None:
        """Return the tensor of the files that a tensor of the model is read from."""
        return self.index.tensors.get(self.names.get(name, name))

    @property
    def stored_format(self) -> str | None:
        """Return the quantization format that the configuration names; None: dense."""
        stated = self.config.get("quantization_config")
        return str(stated.get("quant_method", "unknown")) if isinstance(stated, Mapping) else None


def read_base_folder(
    folder: Path, *, load_kwargs: Mapping[str, Any] | None = None, trust_remote_code: bool = False
) -> BaseFolder:
    """Return what stands in a model folder; `load_kwargs` are those its recipe passes to `from_pretrained`.

    Raises:
        UsageError: files are missing, damaged or pickled, or the architecture is no causal language model.
    """
    from transformers.pytorch_utils import Conv1D

    from quantkit.layers import features, linear_layers, output_head
    from quantkit.skeleton import read_skeleton

    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder}: no config.json: not a model folder")
    index = read_tensor_index(folder)
    model = read_skeleton(str(folder), trust_remote_code=trust_remote_code).model
    head, head_module = output_head(model)
    linears = linear_layers(model) | ({head: head_module} if head else {})
    layers = {name: features(module)[::-1] for name, module in linears.items()}
    turned = frozenset(name for name, module in linears.items() if isinstance(module, Conv1D))
    embeddings_module = model.get_input_embeddings()
    embeddings = next((name for name, module in model.named_modules() if module is embeddings_module), "")
    tied = bool(head) and getattr(head_module, "weight", 0) is getattr(embeddings_module, "weight", 1)
    buffers = frozenset(name for name, _ in model.named_buffers())
    names = names_in_files(model, index.tensors)
    return BaseFolder(
        folder=folder,
        config=read_object(folder / "config.json"),
        index=index,
        layers=layers,
        turned=turned,
        head=head,
        embeddings=embeddings,
        tied=tied,
        quantized_on_loading=_quantized_on_loading(model, load_kwargs or {}),
        names=names,
        buffers=buffers,
        skeleton=model,
    )


def names_in_files(model: Any, tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Pair names as transformers does: a checkpoint of the bare decoder lacks its prefix, or has one that the model lacks."""
    prefix = f"{model.base_model_prefix}."
    stems = {name.rpartition(".")[0] for name in tensors}
    found = {}
    for name in model.state_dict():
        for wanted in (name, name.removeprefix(prefix), prefix + name):
            if wanted in tensors or wanted.rpartition(".")[0] in stems:
                found[name] = wanted
                break
    return found


def _quantized_on_loading(model: Any, load_kwargs: Mapping[str, Any]) -> frozenset[str]:
    """Return the layers that transformers would quantize, found by letting it replace them in the skeleton."""
    config = load_kwargs.get("quantization_config")
    if config is None:
        return frozenset()
    from transformers.quantizers.auto import AutoHfQuantizer

    AutoHfQuantizer.from_config(config, pre_quantized=False).preprocess_model(model=model, device_map={"": "cpu"})
    return frozenset(name for name, part in model.named_modules() if type(part).__module__.startswith("bitsandbytes."))
