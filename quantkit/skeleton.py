"""What can be known about a model before its weights are read? Its configuration, its layers without values, its end tokens.

Everything a plan needs comes from here, so that a run that cannot work stops within seconds. Loading the weights first, to
ask the loaded model, makes every typing error cost a load.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.hub import one_line, refuse_folder_without_model, refuse_missing_folder

CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A model on torch's `meta` device: names and shapes, no values."""

    config: Any
    """`transformers.PreTrainedConfig`"""
    model: Any
    """`transformers.PreTrainedModel` whose tensors are on `meta`."""
    parameters: int
    """Number of parameters, tied ones once."""


def read_skeleton(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Skeleton:
    """Return a model's skeleton from its `config.json` alone.

    Raises:
        UsageError: there is no such folder or hub id, or its architecture is no causal language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    refuse_missing_folder(path)
    refuse_folder_without_model(Path(path).expanduser())
    with one_line(path, "config.json"):
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return Skeleton(config, model, sum(parameter.numel() for parameter in model.parameters()))


def read_stop_tokens(path: str, tokenizer: Any, *, revision: str | None = None) -> tuple[int, ...]:
    """Return the token ids at which generation with this model stops: those of its generation config, else the tokenizer's."""
    from transformers import GenerationConfig

    refuse_missing_folder(path)
    try:
        ids = GenerationConfig.from_pretrained(path, revision=revision).eos_token_id
    except OSError:  # a model without generation_config.json; a missing model is found by whoever loads it
        ids = None
    ids = tokenizer.eos_token_id if ids is None else ids
    return tuple(ids) if isinstance(ids, list) else () if ids is None else (int(ids),)


def folder_here(path: str, revision: str | None = None) -> Path | None:
    """Return the folder of a model, also of one in the hub's cache, as far as it is on this machine; nothing is fetched."""
    if is_local(path):
        return Path(path).expanduser()
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(path, CONFIG, revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def is_local(path: str) -> bool:
    """Whether a model is named by a folder of this machine rather than by a hub id."""
    return Path(path).expanduser().is_dir()
