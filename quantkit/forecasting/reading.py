"""Where does the description of a model come from: a folder, a `config.json`, a hub id, a model that is known by name?

Nothing but the configuration is read, and of a hub id nothing else fetched. Families in `quantkit.forecasting.families` are
told from that alone; any other is built on torch's `meta` device by transformers, which knows every architecture but takes
seconds to import.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError
from quantkit.files import read_json
from quantkit.forecasting.bundled import described
from quantkit.forecasting.families import known_shape
from quantkit.forecasting.shape import LinearShape, ModelShape
from quantkit.modeling import one_line, refuse_missing_folder

CONFIG = "config.json"


def read_shape(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> ModelShape:
    """Return the shape of a model named by a folder, a configuration file, a hub id, or a name that is described here.

    Raises:
        UsageError: there is no such folder, file or hub id, or it is no causal language model.
    """
    config, file = read_config(path, revision=revision)
    known = known_shape(config, path)
    if known is not None:
        return known
    return _asked(path if file is None else str(file), path, revision=revision, trust_remote_code=trust_remote_code)


def read_config(path: str, *, revision: str | None = None) -> tuple[Mapping[str, Any], Path | None]:
    """Return a model's configuration, and the local file it was read from; None: it is one of those described here.

    Raises:
        UsageError: nothing of this name can be read, or it is no JSON object.
    """
    given = Path(path).expanduser()
    if given.is_file():
        file = given
    elif given.is_dir():
        file = given / CONFIG
        if not file.is_file():
            raise UsageError(f"{path}: no {CONFIG}: not a model folder")
    else:
        refuse_missing_folder(path)
        found = _cached(path, revision)
        if found is None and revision is None and (bundled := described(path)) is not None:
            return bundled, None
        file = found or _fetched(path, revision)
    data = read_json(file)
    if not isinstance(data, Mapping):
        raise UsageError(f"{file}: is {type(data).__name__}, not an object")
    return data, file


def _cached(hub_id: str, revision: str | None) -> Path | None:
    """Return the configuration in the hub's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(hub_id, CONFIG, revision=revision)
    except HFValidationError as error:
        raise UsageError(f"{hub_id}: neither a folder, a file nor a hub id: {str(error).splitlines()[0]}") from None
    return Path(found) if isinstance(found, str) else None


def _fetched(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    with one_line(hub_id, CONFIG):
        return Path(hf_hub_download(hub_id, CONFIG, revision=revision))


def _asked(path: str, name: str, *, revision: str | None, trust_remote_code: bool) -> ModelShape:
    """Return the shape of a model that transformers builds on the `meta` device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = str(Path(path).parent) if Path(path).name == CONFIG else path
    with one_line(name, CONFIG):
        config = AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return shape_of(model, name)


def shape_of(model: Any, name: str) -> ModelShape:
    """Return the shape of a transformers model, whatever its tensors' device."""
    from quantkit.layers import features, linear_layers, output_head
    from quantkit.numerics.capture import find_blocks

    text = model.config.get_text_config()
    layers = tuple(_linear(key, module) for key, module in linear_layers(model).items())
    head_name, head = output_head(model)
    embeddings = model.get_input_embeddings().weight
    tied = head is not None and getattr(head, "weight", None) is embeddings
    blocks = find_blocks(model)[1]
    total = sum(parameter.numel() for parameter in model.parameters())
    head_shape = None if head is None else _linear(head_name, head)
    counted = sum(layer.weights for layer in layers) + embeddings.numel()
    width, heads = int(embeddings.shape[1]), int(_first(text, "num_attention_heads", "n_head") or 1)
    sizes = [size for layer in layers for size in features_of(layer)]
    return ModelShape(
        name=name,
        family=str(model.config.model_type),
        linears=layers,
        head=head_shape,
        tied=tied,
        embeddings=embeddings.numel(),
        others=total - counted - (0 if tied or head_shape is None else head_shape.weights),
        blocks=len(blocks),
        width=width,
        heads=heads,
        kv_heads=int(_first(text, "num_key_value_heads") or heads),
        head_dim=int(_first(text, "head_dim") or width // heads),
        intermediate=int(
            _first(text, "moe_intermediate_size", "intermediate_size", "ffn_dim", "n_inner") or max(sizes, default=4 * width)
        ),
        vocabulary=features(head)[1] if head is not None else int(embeddings.shape[0]),
        head_norms=any("q_norm" in key or "q_layernorm" in key for key, _ in blocks[0].named_modules()),
        block_norms=sum(
            "norm" in key.rpartition(".")[2].lower() or key.startswith("ln_") for key, _ in blocks[0].named_children()
        ),
        scores_kept=_first(text, "attn_logit_softcapping") is not None or text.model_type.startswith("gpt_oss"),
        experts=int(_first(text, "num_local_experts", "num_experts", "n_routed_experts") or 0),
        experts_per_token=int(_first(text, "num_experts_per_tok", "experts_per_token") or 0),
        dtype=str(model.config.dtype or model.dtype).removeprefix("torch."),
        max_positions=_first(text, "max_position_embeddings", "n_positions"),
    )


def features_of(layer: LinearShape) -> tuple[int, int]:
    """Return (outputs, inputs)."""
    return layer.outputs, layer.inputs


def _linear(name: str, module: Any) -> LinearShape:
    from quantkit.layers import features

    inputs, outputs = features(module)
    return LinearShape(name, outputs, inputs, getattr(module, "bias", None) is not None)


def _first(config: Any, *names: str) -> Any:
    """Return the first of these sizes that a configuration has."""
    return next((value for name in names if (value := getattr(config, name, None))), None)
