"""What do 7B, 13B and 70B models take, trained in full, with LoRA, with QLoRA? And why do others' tables say otherwise?

The classical table, from the counting that every other forecast uses, with what others publish beside it and the difference
explained. Copying a rule of thumb per parameter would agree with those tables and with no run.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from quantkit.forecasting.constants import GIB, Constants
from quantkit.forecasting.forecast import Forecast, forecast_run
from quantkit.forecasting.published import NF4
from quantkit.forecasting.reading import read_shape
from quantkit.forecasting.settings import RunSettings
from quantkit.plan import AdapterPlan, QuantizationPlan, Stage
from quantkit.spec import QuantizationSpec

COLUMNS = {"7B": "meta-llama/Llama-2-7b-hf", "13B": "meta-llama/Llama-2-13b-hf", "70B": "meta-llama/Llama-2-70b-hf"}
"""Heading → the model whose published sizes are counted."""
RANK, PAPER_RANK, LENGTH = 16, 64, 1024
SETTINGS_TEXT = (
    f"Llama-2's sizes; one row of {LENGTH:,} tokens, blocks computed again, LoRA of rank {RANK} on all linear layers, AdamW in"
    " 32 bits, trained weights in float32; allocated by tensors, CUDA's context and fragmentation not counted"
)
FACTORY = "LLaMA-Factory, estimated"
QLORA_PAPER = "arXiv:2305.14314, 65B"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way of training."""

    way: str
    ours_gib: tuple[float, ...]
    theirs: tuple[str, ...] = ()
    """What others say for the same columns, as they write it."""
    source: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        sizes = dict(zip(COLUMNS, (round(size, 2) for size in self.ours_gib), strict=True))
        theirs = dict(zip(COLUMNS, self.theirs, strict=True)) if self.theirs else None
        return {"way": self.way, "ours_gib": sizes, "published": theirs, "source": self.source or None}


@cache
def classical_rows() -> tuple[Row, ...]:
    """Return the table."""
    lora = AdapterPlan(r=RANK)
    return (
        Row(
            way="full",
            ours_gib=_sizes(AdapterPlan(kind="NoPeft")),
            theirs=("120 GB", "240 GB", "1200 GB"),
            source=f"{FACTORY}, 14B",
        ),
        Row(
            way="full, all in bfloat16",
            ours_gib=_sizes(AdapterPlan(kind="NoPeft"), trained_dtype="bfloat16"),
            theirs=("60 GB", "120 GB", "600 GB"),
            source=FACTORY,
        ),
        Row(way="LoRA", ours_gib=_sizes(lora), theirs=("16 GB", "32 GB", "160 GB"), source=FACTORY),
        Row(way="QLoRA", ours_gib=_sizes(lora, spec=NF4), theirs=("6 GB", "12 GB", "48 GB"), source=FACTORY),
        Row(
            way=f"QLoRA, rank {PAPER_RANK}, states paged",
            ours_gib=_sizes(AdapterPlan(r=PAPER_RANK), spec=NF4, optim="paged_adamw_32bit"),
            theirs=("–", "–", "below 48 GB"),
            source=QLORA_PAPER,
        ),
    )


def differences() -> list[str]:
    """Return why the published numbers are not ours, from the counted items."""
    full, lora, qlora = (_forecast("meta-llama/Llama-2-7b-hf", **case) for case in _cases())
    paper = _forecast("huggyllama/llama-65b", adapter=AdapterPlan(r=PAPER_RANK), spec=NF4, optim="paged_adamw_32bit")
    step = full.moment("backward").items
    adapters = sum(lora.moment("step").items[name] for name in ("adapters", "gradients", "optimizer states"))
    shared = (lora.moment("step").items.keys() & lora.moment("backward").items.keys()) - {"gradients"}
    kept = lora.moment("backward").size_bytes - sum(lora.moment("step").items[name] for name in shared)
    return [
        f"full: 16 bytes a parameter (weights, gradients, two states in float32) are {_gib(16 * full.shape.parameters)} at 7B,"
        f" activations {_gib(step['activations computed again'] + step['activations'])}; 120 GB are a rule of 18 bytes",
        f"LoRA: {_gib(_held(lora))} of weights in 16 bits; the 16 GB leave {_gib(16e9 - _held(lora))} for adapters"
        f" ({_gib(adapters)} here) and activations ({_gib(kept)})",
        f"QLoRA: NF4 takes 4.13 bits with its scales; embeddings and head stay in 16 bits: {_gib(_held(qlora))} at 7B, where"
        f" half a byte a parameter would be {_gib(qlora.shape.parameters // 2)}",
        f"the paper's 65B model (LLaMA-65B) at rank {PAPER_RANK} with paged states: {_gib(paper.allocated_bytes)} by our"
        " counting, which fits the 48 GB it was trained on",
    ]


def _cases() -> list[dict[str, Any]]:
    lora = AdapterPlan(r=RANK)
    return [{"adapter": AdapterPlan(kind="NoPeft")}, {"adapter": lora}, {"adapter": lora, "spec": NF4}]


def _sizes(adapter: AdapterPlan, **case: Any) -> tuple[float, ...]:
    return tuple(_forecast(model, adapter=adapter, **case).allocated_bytes / GIB for model in COLUMNS.values())


def _forecast(model: str, *, adapter: AdapterPlan, spec: QuantizationSpec | None = None, **settings: Any) -> Forecast:
    spec = spec or QuantizationSpec.dense("bfloat16")
    plan = QuantizationPlan(method=spec.method, stage=Stage.BASE, spec=spec, adapter=adapter)
    known: dict[str, Any] = {
        "rows": 1,
        "length": LENGTH,
        "recompute": "full",
        "merges": False,
        "optim": "adamw_torch_fused",
    } | settings
    return forecast_run(read_shape(model), RunSettings(plan=plan, device="cuda", **known), Constants())


def _held(forecast: Forecast) -> int:
    """Return the bytes of the base while it is trained on."""
    items = forecast.moment("step").items
    return sum(size for name, size in items.items() if name.endswith("weights") or name.startswith("embeddings"))


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB"
