"""What have others measured, under which settings, and does our counting meet it?

Each figure stands with the settings that its source states and those that had to be assumed, and is compared with a forecast
for those settings, of the trainer that made it. No constant is fitted to any of them. A figure that cannot be met stays in the
table as lost, with the reason: leaving it out would make the others look like the whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quantkit.forecasting.constants import GIB, Constants
from quantkit.forecasting.forecast import Forecast, forecast_run
from quantkit.forecasting.reading import read_shape
from quantkit.forecasting.settings import RunSettings
from quantkit.plan import AdapterPlan, PeftKind, QuantizationPlan, Stage
from quantkit.spec import QuantizationSpec

TOLERANCE = 0.15
"""Relative difference within which a figure counts as met."""

TRL = "TRL's SFTTrainer with PEFT: checkpointing on, adapters in float32, AdamW in 32 bits, logits of all positions"
TORCHTUNE = "weights, gradients and AdamW's states in bfloat16; batch 2 of 4,096 packed tokens; A100"


NF4 = QuantizationSpec(method="QLORA", weights_bits=4, weights_dtype="nf4", format="bitsandbytes", double_quant=True)
"""The grid of the figures that are called QLoRA."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One published figure of a GPU's allocated memory."""

    name: str
    source: str
    model: str
    """Hub id of a model described in `quantkit.forecasting.bundled`."""
    gib: float
    stated: str
    """What the source states and what is assumed."""
    spec: QuantizationSpec = field(default_factory=lambda: QuantizationSpec.dense("bfloat16"))
    """What the base is held in."""
    adapter: AdapterPlan = field(default_factory=AdapterPlan)
    settings: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    """Why it is not met, where it is not."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A published figure beside the forecast for its settings."""

    figure: Published
    forecast: Forecast

    @property
    def gib(self) -> float:
        """Return the forecast of allocated memory in GiB."""
        return self.forecast.allocated_bytes / GIB

    @property
    def difference(self) -> float:
        """Return the forecast's relative difference from the figure."""
        return self.gib / self.figure.gib - 1

    @property
    def met(self) -> bool:
        """Whether the difference is within the tolerance."""
        return abs(self.difference) <= TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        figure = self.figure
        return {
            "name": figure.name,
            "source": figure.source,
            "model": figure.model,
            "stated": figure.stated,
            "published_gib": figure.gib,
            "forecast_gib": round(self.gib, 2),
            "difference": round(self.difference, 4),
            "met": self.met,
            "reason": figure.reason or None,
        }


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
TORCHTUNE_TARGETS = ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TRL_RUN = {"rows": 1, "length": 1024, "accumulation": 8, "recompute": "full", "logits": "all"}
TORCHTUNE_RUN = {"rows": 2, "length": 4096, "trained_dtype": "bfloat16", "optim": "adamw_torch_fused"}
TORCHTUNE_OFFLOADED = TORCHTUNE_RUN | {"logits": "chunks", "compiled": True, "offload": True}
"""Blocks are computed again, and their inputs wait on the CPU too: what stays is what offloading alone leaves."""
STUDY = "the study (its metadata of Qwen3-8B runs)"
LADDER = "torchtune's README, Llama-3.2-3B"
FULL = AdapterPlan(kind="NoPeft")

STUDY_RUNS: tuple[tuple[PeftKind, int, float], ...] = (("LoRa", 256, 20.17), ("DoRa", 256, 20.18), ("VeRa", 512, 16.19))

FIGURES = (
    *(
        Published(
            name=f"Qwen3-8B {kind}-{rank}",
            source=STUDY,
            model="Qwen/Qwen3-8B",
            gib=gib,
            adapter=AdapterPlan(kind=kind, r=rank, target_modules=ATTENTION),
            settings=TRL_RUN,
            stated=f"{TRL}; batch 1, length 1,024, accumulation 8; adapters on q, k, v, o",
        )
        for kind, rank, gib in STUDY_RUNS
    ),
    Published(
        name="Qwen3-8B QLoRA-256",
        source=STUDY,
        model="Qwen/Qwen3-8B",
        gib=7.61,
        spec=NF4,
        adapter=AdapterPlan(r=256, target_modules=ATTENTION),
        settings=TRL_RUN | {"logits": "tiles", "optim": "paged_adamw_32bit"},
        stated="as quantkit's own QLORA trains it: embeddings and head in bfloat16, AdamW's states paged, the loss in tiles;"
        " batch 1, length 1,024, adapters on q, k, v, o",
    ),
    Published(
        name="Qwen3-8B QLoRA-256, by the script",
        source=STUDY,
        model="Qwen/Qwen3-8B",
        gib=7.61,
        spec=NF4,
        adapter=AdapterPlan(r=256, target_modules=ATTENTION),
        settings=TRL_RUN | {"dense": "float32"},
        stated=f"{TRL}, after PEFT's prepare_model_for_kbit_training, which turns embeddings and head into float32",
        reason="NF4 weights (3.34 GiB) with embeddings and head in float32 (4.64 GiB) alone exceed the figure: the script as"
        " published cannot have measured it",
    ),
    Published(
        name="Llama-3.2-3B full, packed, compiled",
        source=LADDER,
        model="meta-llama/Llama-3.2-3B",
        gib=51.0,
        adapter=FULL,
        settings=TORCHTUNE_RUN | {"logits": "all", "compiled": True},
        stated=f"{TORCHTUNE}; no checkpointing",
    ),
    Published(
        name="… with chunked cross entropy",
        source=LADDER,
        model="meta-llama/Llama-3.2-3B",
        gib=42.9,
        adapter=FULL,
        settings=TORCHTUNE_RUN | {"logits": "chunks", "compiled": True},
        stated=f"{TORCHTUNE}; no checkpointing",
    ),
    Published(
        name="… with checkpointing",
        source=LADDER,
        model="meta-llama/Llama-3.2-3B",
        gib=24.9,
        adapter=FULL,
        settings=TORCHTUNE_RUN | {"logits": "chunks", "compiled": True, "recompute": "full"},
        stated=f"{TORCHTUNE}; activation checkpointing",
    ),
    Published(
        name="Llama-3.2-3B LoRA-64",
        source=LADDER,
        model="meta-llama/Llama-3.2-3B",
        gib=8.5,
        adapter=AdapterPlan(r=64, target_modules=TORCHTUNE_TARGETS),
        settings=TORCHTUNE_OFFLOADED,
        stated=f"{TORCHTUNE}; checkpointing and activation offloading; adapters on all layers but k",
    ),
    Published(
        name="Llama-3.2-3B QLoRA-64",
        source=LADDER,
        model="meta-llama/Llama-3.2-3B",
        gib=4.6,
        spec=NF4,
        adapter=AdapterPlan(r=64, target_modules=TORCHTUNE_TARGETS),
        settings=TORCHTUNE_OFFLOADED,
        stated=f"{TORCHTUNE}; checkpointing and activation offloading; adapters on all layers but k",
    ),
)


def compare(figure: Published) -> Compared:
    """Return a figure beside the forecast for its settings."""
    plan = QuantizationPlan(method=figure.spec.method, stage=Stage.BASE, spec=figure.spec, adapter=figure.adapter)
    settings = RunSettings(plan=plan, device="cuda", merges=False, **figure.settings)
    return Compared(figure, forecast_run(read_shape(figure.model), settings, Constants()))


def compare_all() -> list[Compared]:
    """Return all figures beside their forecasts."""
    return [compare(figure) for figure in FIGURES]
