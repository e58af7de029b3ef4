"""What does an `adapter_config.json` ask for, and can it be folded exactly?

Every setting that could change what the adapter computes is either understood here or refused by name; a key that is not
known and not empty is refused, too. PEFT warns about unknown keys and goes on, which is how a newer variant would be merged
as plain LoRA.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError
from quantkit.headers import read_object
from quantkit.plan import PeftKind

ADAPTER_CONFIG = "adapter_config.json"
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "d_initial", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "init_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "alpha_pattern", "lora_dropout", "lora_ga_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "projection_prng_key", "qalora_group_size", "r", "rank_pattern",
    "revision", "save_projection", "target_modules", "task_type", "use_dora", "use_rslora", "vera_dropout",
}  # fmt: skip
"""Settings that are read here, or that say nothing about a trained adapter's arithmetic."""
REASONS = {
    "trainable_token_indices": "trains single rows of the embeddings",
    "layer_replication": "repeats layers of the base",
    "lora_bias": "gives adapters a bias of their own",
    "target_parameters": "adapts bare parameters",
    "arrow_config": "chooses adapters token by token",
    "alora_invocation_tokens": "is active from certain tokens on",
}
KEEPS_BASE = (True, False, "gaussian", "eva", "orthogonal", "true", "false")
"""Values of `init_lora_weights` that leave the base's weights as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """The settings of an adapter that decide what it computes."""

    kind: PeftKind
    r: int
    alpha: float = 1.0
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Pattern of module names to the rank there, where it is not `r`."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    projection_prng_key: int | None = None
    """VeRA: seed of the shared projections."""
    save_projection: bool = True
    """VeRA: whether they are stored with the adapter."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The whole file."""

    def rank(self, module: str) -> int:
        """Return the rank at a module.

        >>> AdapterSettings(kind="LoRa", r=8, rank_pattern={"v_proj": 4}).rank("model.layers.0.self_attn.v_proj")
        4
        """
        return int(_by_pattern(self.rank_pattern, module, self.r))

    def scaling(self, module: str) -> float:
        """Return the factor of B·A at a module: alpha/r, or alpha/√r (rank-stabilised)."""
        alpha: float = _by_pattern(self.alpha_pattern, module, self.alpha)
        rank = self.rank(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def read_settings(folder: Path) -> AdapterSettings:
    """Return what an adapter folder's configuration asks for.

    Raises:
        UsageError: the file is missing or damaged, the adapter is of another kind, or a setting cannot be folded.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        raise UsageError(f"{folder}: not an adapter folder; {ADAPTER_CONFIG} and adapter_model.safetensors are needed")
    config = read_object(path)
    peft_type = str(config.get("peft_type", "")).upper()
    if peft_type not in ("LORA", "VERA"):
        raise UsageError(f"{path}: adapters of type {peft_type[:40] or 'unknown'} cannot be folded in; LoRA, DoRA and VeRA can")
    for key, value in config.items():
        if key not in HARMLESS and value:
            raise UsageError(f"{path}: {key} {REASONS.get(key, 'is a setting that is not known here')}; it cannot be folded in")
    if config.get("bias", "none") != "none":
        raise UsageError(f"{path}: bias is {config['bias']!r}: trained biases cannot be folded in; 'none' can")
    if (start := config.get("init_lora_weights", True)) not in KEEPS_BASE:
        raise UsageError(
            f"{path}: init_lora_weights {str(start)[:40]!r} changed the base's weights when training began, and what they"
            " became is not stored; save such an adapter converted to plain LoRA (path_initial_model_for_weight_conversion)"
        )
    use_dora = _flag(path, config, "use_dora")
    vera = peft_type == "VERA"
    saved = config.get("modules_to_save") or ()
    if isinstance(saved, str) or not all(isinstance(item, str) for item in saved):
        raise UsageError(f"{path}: modules_to_save is {str(saved)[:60]!r}; a list of module names is wanted")
    return AdapterSettings(
        kind="VeRa" if vera else "DoRa" if use_dora else "LoRa",
        r=_count(path, "r", config.get("r")),
        alpha=1.0 if vera else _number(path, "lora_alpha", config.get("lora_alpha")),
        use_rslora=_flag(path, config, "use_rslora"),
        rank_pattern={key: _count(path, "rank_pattern", value) for key, value in _patterns(path, config, "rank_pattern")},
        alpha_pattern={key: _number(path, "alpha_pattern", value) for key, value in _patterns(path, config, "alpha_pattern")},
        modules_to_save=tuple(saved),
        projection_prng_key=_count(path, "projection_prng_key", config.get("projection_prng_key"), least=0) if vera else None,
        save_projection=bool(config.get("save_projection", True)),
        config=config,
    )


def _by_pattern(patterns: Mapping[str, Any], module: str, usual: Any) -> Any:
    """Return the value of the first pattern that matches a module's name as PEFT matches it: as a regular expression."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), usual)


def _patterns(path: Path, config: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{path}: {key} is {str(value)[:40]!r}; an object of patterns is wanted")
    for pattern in value:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(
                f"{path}: {key} has the pattern {pattern[:60]!r}, which is no regular expression: {error}"
            ) from None
    return list(value.items())


def _flag(path: Path, config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key, False)
    if value not in (True, False, None):
        raise UsageError(f"{path}: {key} is {str(value)[:40]!r}; true or false is wanted")
    return bool(value)


def _count(path: Path, key: str, value: Any, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{path}: {key} is {str(value)[:40]!r}; a whole number from {least} on is wanted")
    return value


def _number(path: Path, key: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise UsageError(f"{path}: {key} is {str(value)[:40]!r}; a number is wanted")
    return value
