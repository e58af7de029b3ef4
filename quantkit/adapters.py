"""Which layers get adapters, how large, and did training reach them?

Targets are resolved to full layer names before PEFT sees them, so that an entry that matches nothing is an error with
suggestions. PEFT only complains when nothing at all matched, and skips the rest in silence.
"""

import re
import warnings
from fnmatch import fnmatchcase
from typing import Any

from quantkit.errors import UsageError, VerificationError, did_you_mean
from quantkit.plan import AdapterPlan

ATTENTION = re.compile(r"(^|_)(attn|attention)", re.IGNORECASE)
"""A path component that marks attention: `self_attn`, `attention` (GPT-NeoX), `attn` (GPT-2), `self_attention` (Falcon)."""
ROUTERS = ("gate", "router", "shared_expert_gate")
"""Last components of mixture-of-experts routers, which are no part of the MLP."""
PRESETS = ("all-linear", "attention", "attention+mlp")
RANKS = ((1_000_000_000, 16), (5_000_000_000, 32))
"""(parameters below, recommended rank); see `recommend_rank`."""
LARGEST_RANK = 64


def recommend_rank(parameters: int) -> int:
    """Return a rank for adapters on all linear layers of a model with this many parameters.

    With adapters on all layers, the rank hardly changes quality (QLoRA, arXiv:2305.14314, section 4), so the rule is one of
    cost: adapters grow with r × (width), the model with (width)², so a constant rank is a shrinking share. Powers of two
    that keep the adapters between 1 % and 4 % of the base: 16 below 1e9 (SmolLM2-135M: 3.6 %), 32 below 5e9 (Llama-3.2-3B:
    1.5 %), 64 from there on (Llama-2-7B: 2.4 %; 70B: 1.2 %).

    >>> [recommend_rank(size) for size in (135_000_000, 3_200_000_000, 8_000_000_000)]
    [16, 32, 64]
    """
    return next((rank for below, rank in RANKS if parameters < below), LARGEST_RANK)


def resolve_targets(model: Any, target_modules: tuple[str, ...] | list[str]) -> list[str]:
    """Return the full names of the linear layers that get adapters, in the model's order.

    An entry is `all-linear` (all but the output head), `attention`, `attention+mlp` (all linear layers of the decoder
    blocks but mixture-of-experts routers), the end of a name (`q_proj`, `self_attn.q_proj`), or a name with wildcards
    (`model.layers.*.self_attn.q_proj`).

    Raises:
        UsageError: an entry matches no linear layer; the text lists what exists.
    """
    from quantkit.layers import linear_layers, output_head

    return chosen_targets(list(linear_layers(model)), output_head(model)[0], target_modules, family=_family(model))


def chosen_targets(layers: list[str], head: str, target_modules: tuple[str, ...] | list[str], *, family: str) -> list[str]:
    """Return which of a model's linear layers, by their full names, get adapters; `head` is the output head's name, or "".

    Raises:
        UsageError: as `resolve_targets`.
    """
    named = [*layers, *([head] if head else [])]
    chosen: set[str] = set()
    for entry in target_modules:
        matches = _preset(entry, layers) if entry in PRESETS else [name for name in named if _matches(name, entry)]
        if not matches:
            endings = sorted({name.rpartition(".")[2] for name in named})
            suggestion = did_you_mean(entry, [*endings, *PRESETS])
            raise UsageError(
                f"target_modules: {entry!r} matches no linear layer of this {family} model."
                f"{suggestion} Layers end in {', '.join(endings)}; presets are {', '.join(PRESETS)}"
            )
        chosen.update(matches)
    if not chosen:
        raise UsageError(f"target_modules is empty; name layers or a preset: {', '.join(PRESETS)}")
    return [name for name in named if name in chosen]


def attach_adapter(model: Any, adapter: AdapterPlan, seed: int) -> Any:
    """Wrap the model with fresh float32 adapters and return the `PeftModel`; the same seed gives the same adapters.

    NoPeft returns the model itself with all weights trainable. VeRA's frozen projections are drawn from `seed` and saved
    with the adapter: regenerating them depends on the random generator of another torch version or machine. PiSSA changes the
    base's weights; LoftQ's start is set afterwards (`quantkit.starts`).

    Raises:
        UsageError: a target or an entry of `modules_to_save` does not exist.
    """
    if adapter.kind == "NoPeft":
        model.requires_grad_(True)
        return model
    import torch
    from peft import LoraConfig, VeraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    from quantkit.layers import unwrapped

    names = resolve_targets(model, adapter.target_modules)
    modules = {name for name, _ in model.named_modules()}
    for entry in adapter.modules_to_save:
        if not any(name == entry or name.endswith(f".{entry}") for name in modules):
            endings = {name.rpartition(".")[2] for name in modules}
            raise UsageError(f"modules_to_save: the model has no module {entry!r}.{did_you_mean(entry, endings)}")
    shared: dict[str, Any] = {
        "r": adapter.r,
        "target_modules": names,
        "modules_to_save": list(adapter.modules_to_save) or None,
        "task_type": "CAUSAL_LM",
        "fan_in_fan_out": isinstance(unwrapped(model.get_submodule(names[0])), Conv1D),
    }
    if adapter.kind == "VeRa":
        config: Any = VeraConfig(**shared, vera_dropout=adapter.lora_dropout, projection_prng_key=seed, save_projection=True)
    else:
        config = LoraConfig(
            **shared,
            lora_alpha=adapter.lora_alpha,
            lora_dropout=adapter.lora_dropout,
            use_dora=adapter.kind == "DoRa",
            use_rslora=adapter.use_rslora,
            init_lora_weights="pissa" if adapter.init_lora_weights == "pissa" else True,
        )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # PEFT asks by the old name
        torch.manual_seed(seed)
        return get_peft_model(model, config, autocast_adapter_dtype=True)


def is_up_projection(name: str) -> bool:
    """Whether a tensor is the part of an adapter that starts at zero and carries the update: LoRA's B, VeRA's lambda_b."""
    return ".lora_B." in name or ".vera_lambda_b" in name


def check_adapter_tensors(stored: dict[str, Any], expected: set[str], *, where: str) -> None:
    """Check the tensors of a stored adapter against the names its configuration asks for.

    Raises:
        VerificationError: there are none, names differ, a value is not finite, or the adapter never learnt anything.
    """
    if not stored:
        raise VerificationError(f"{where}: the adapter holds no tensors")
    missing, extra = sorted(expected - set(stored)), sorted(set(stored) - expected)
    if missing or extra:
        parts = [f"{len(missing)} missing, e.g. {missing[0]}"] if missing else []
        parts += [f"{len(extra)} unknown, e.g. {extra[0]}"] if extra else []
        raise VerificationError(f"{where}: the adapter's tensors do not fit its configuration and base: {'; '.join(parts)}")
    for name, tensor in stored.items():
        if not bool(tensor.isfinite().all()):
            raise VerificationError(f"{where}: {name} holds values that are not finite")
    if not any(bool(tensor.any()) for name, tensor in stored.items() if is_up_projection(name)):
        raise VerificationError(f"{where}: all B matrices are zero; the adapter was never trained")


def _preset(entry: str, layers: list[str]) -> list[str]:
    if entry == "all-linear":
        return layers
    attention = [name for name in layers if any(ATTENTION.search(part) for part in name.split(".")[:-1])]
    if entry == "attention" or not attention:
        return attention
    blocks = [name for name in layers if any(part.isdigit() for part in name.split("."))]
    return [name for name in blocks if name.rpartition(".")[2] not in ROUTERS]


def _matches(name: str, entry: str) -> bool:
    if any(sign in entry for sign in "*?["):
        return fnmatchcase(name, entry) or fnmatchcase(name, f"*.{entry}")
    return name == entry or name.endswith(f".{entry}")


def _family(model: Any) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
