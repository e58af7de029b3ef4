"""What will a run do to the model? A plan says so before anything heavy is imported.

Plans are plain data: they can be printed, compared, stored beside the weights and kept as golden files. No
`BitsAndBytesConfig` or other live object stands in them; a plugin builds those from the plan when the model is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, Self

from quantkit.errors import UsageError
from quantkit.gate import GateLimits
from quantkit.spec import QuantizationSpec, read_fields

PEFT_KINDS = ("NoPeft", "LoRa", "DoRa", "VeRa")
PeftKind = Literal["NoPeft", "LoRa", "DoRa", "VeRa"]
CalibrationNeed = Literal["none", "optional", "required"]
AdapterStart = Literal["default", "loftq", "pissa"]


class Stage(StrEnum):
    """When a method works on the weights."""

    BASE = "base"
    """On the base, before adapters are trained on it."""
    TRAINED = "trained"
    """On a finished model: post-training quantization."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodNotes:
    """What somebody who chooses among methods asks, a sentence or two each; empty where there is nothing to say."""

    paper: str = ""
    """Where the method is published."""
    takes: str = ""
    """What quantizing takes: data, memory, and time as it was measured."""
    served: str = ""
    """Who reads what it stores, and by which kernels."""
    limits: str = ""
    """What it cannot do, and where it lost."""


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """What a plugin declares about its method, without importing anything heavy."""

    name: str
    """The word users type, e.g. `QLORA`; the same as the plugin's entry point."""
    summary: str
    """One line for `quantkit methods`."""
    options: type[Any]
    """Frozen dataclass of the method's own settings; each field's docstring is its help text."""
    stages: frozenset[Stage] = frozenset({Stage.BASE})
    requirements: tuple[str, ...] = ()
    """PEP 508 requirements beyond quantkit's own, e.g. `compressed-tensors>=0.19`."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    """Device types on which the method works."""
    adapters: tuple[str, ...] = PEFT_KINDS
    """PEFT kinds that can be trained at the base stage."""
    calibration: CalibrationNeed = "none"
    """Whether `quantize_model` wants calibration data; `optional`: when `calibrated` in the plan's options is true."""
    claims: tuple[str, ...] = ()
    """Storage kinds (see `quantkit.headers.StoredWeights.kind`) whose bare checkpoints are read as this method."""
    notes: MethodNotes = MethodNotes()
    """What `quantkit methods NAME` says beside the facts."""
    gate_limits: Mapping[int, GateLimits] = field(default_factory=dict)
    """weights_bits to the limits that its results are judged by, where they are not `quantkit.gate.DEFAULT_LIMITS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPlan:
    """Which adapters are trained, with the settings PEFT needs. Ranks and alphas are counts, dropout a probability."""

    kind: PeftKind = "LoRa"
    r: int = 16
    lora_alpha: float = 32
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] = ("all-linear",)
    """Module name endings, `all-linear`, a preset (`attention`, `attention+mlp`) or full names with wildcards."""
    modules_to_save: tuple[str, ...] = ()
    use_rslora: bool = False
    """Scale by alpha/√r instead of alpha/r (arXiv:2312.03732)."""
    init_lora_weights: AdapterStart = "default"
    """Where training starts: at no change; at what quantization took from the base; at the base's largest singular values."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_modules", tuple(self.target_modules))
        object.__setattr__(self, "modules_to_save", tuple(self.modules_to_save))
        if self.kind not in PEFT_KINDS:
            raise UsageError(f"adapter.kind is {self.kind!r}; known: {', '.join(PEFT_KINDS)}")
        if self.kind != "NoPeft" and not 1 <= self.r <= 65536:
            raise UsageError(f"adapter.r is {self.r}; a rank is between 1 and 65536")
        if not 0.0 <= self.lora_dropout < 1.0:
            raise UsageError(f"adapter.lora_dropout is {self.lora_dropout}; a probability below 1 is wanted")
        if self.use_rslora and self.kind not in ("LoRa", "DoRa"):
            raise UsageError(f"use_rslora scales LoRa and DoRa; the adapter is {self.kind}")
        if self.init_lora_weights != "default" and self.kind != "LoRa":
            raise UsageError(f"init_lora_weights {self.init_lora_weights!r} starts LoRa adapters; the adapter is {self.kind}")

    @property
    def label(self) -> str:
        """Return kind and rank as names write them: `LoRa16`, `RsLoRa16`, `NoPeft`."""
        return self.kind if self.kind == "NoPeft" else f"{'Rs' if self.use_rslora else ''}{self.kind}{self.r}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `from_dict` is its inverse."""
        return asdict(self) | {
            "target_modules": list(self.target_modules),
            "modules_to_save": list(self.modules_to_save),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read an adapter plan back from JSON data; raises `UsageError` as `QuantizationSpec.from_dict` does."""
        return read_fields(cls, data, where="adapter")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanContext:
    """What a plugin may know when it builds a plan."""

    stage: Stage = Stage.BASE
    trains: bool = True
    """Whether anything is trained; a base that is only quantized and stored needs no gradients."""
    adapter: AdapterPlan = field(default_factory=AdapterPlan)
    """The adapter the user asked for; the plan states the one that will be trained."""
    device: str = "cpu"
    """Device type: `cpu`, `cuda`, …"""
    compute_dtype: str = "bfloat16"
    """Data type of the arithmetic: dense layers are loaded in it, dequantized weights are multiplied in it."""
    dense_dtype: str = "bfloat16"
    """Data type in which whatever is not quantized is stored: head, embeddings, norms. What the spec's `lm_head_dtype` says,
    however wide the copy is that a CPU computes with."""
    lm_head_dtype: str | None = None
    """Data type in which the output head is stored, where it was asked for; None: `dense_dtype`."""
    model_config: Mapping[str, Any] = field(default_factory=dict)
    """The base's `config.json`, as far as it is known."""

    @property
    def head_dtype(self) -> str:
        """Return the data type in which the output head is stored."""
        return self.lm_head_dtype or self.dense_dtype

    def plan(self, spec: QuantizationSpec, options: Any, *, notes: Sequence[str] = ()) -> "QuantizationPlan":
        """Return the plan of a method that stores this spec under these options (an instance of its options class).

        The rest is what was asked for; `QuantizationPlan.with_changes` replaces what a method does otherwise.
        """
        return QuantizationPlan(
            method=spec.method,
            stage=self.stage,
            spec=spec,
            adapter=self.adapter,
            options=asdict(options),
            compute_dtype=self.compute_dtype,
            notes=tuple(notes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationPlan:
    """What will be done, and what the weights will be afterwards.

    `spec` describes the quantized weights of the base (stage `base`) or of the result (stage `trained`).
    """

    method: str
    stage: Stage
    spec: QuantizationSpec
    adapter: AdapterPlan
    options: Mapping[str, Any] = field(default_factory=dict)
    """The method's options as plain JSON values."""
    compute_dtype: str = "bfloat16"
    optim: str | None = None
    """The optimizer the method asks for, as `TrainingArguments.optim` spells it; None leaves the choice to the user."""
    notes: tuple[str, ...] = ()
    """What differs from what was asked for, in sentences the user sees before the run starts."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(self.notes))
        object.__setattr__(self, "options", dict(self.options))

    def with_changes(self, **changes: Any) -> Self:
        """Return a copy with these fields replaced."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `from_dict` is its inverse."""
        return {
            "method": self.method,
            "stage": self.stage.value,
            "spec": self.spec.to_dict(),
            "adapter": self.adapter.to_dict(),
            "options": dict(self.options),
            "compute_dtype": self.compute_dtype,
            "optim": self.optim,
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read a plan back from JSON data; raises `UsageError` as `QuantizationSpec.from_dict` does."""
        return read_fields(cls, data, where="plan")
