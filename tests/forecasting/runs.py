"""Plans and settings that tests of forecasts share."""

from typing import Any

from quantkit.forecasting import RunSettings
from quantkit.plan import AdapterPlan, QuantizationPlan, Stage
from quantkit.spec import QuantizationSpec

NF4 = QuantizationSpec(method="QLORA", weights_bits=4, weights_dtype="nf4", format="bitsandbytes", double_quant=True)
INT8 = QuantizationSpec(method="INT8", weights_bits=8, weights_dtype="int8", format="bitsandbytes", symmetric=True)
DENSE = QuantizationSpec.dense("bfloat16")
LORA, FULL = AdapterPlan(r=16), AdapterPlan(kind="NoPeft")


def plan(spec: QuantizationSpec = DENSE, adapter: AdapterPlan = LORA, **changes: Any) -> QuantizationPlan:
    """Return the plan of a base of this kind."""
    return QuantizationPlan(method=spec.method, stage=Stage.BASE, spec=spec, adapter=adapter, **changes)


def settings(spec: QuantizationSpec = DENSE, adapter: AdapterPlan = LORA, **changes: Any) -> RunSettings:
    """Return the settings of a run on a GPU."""
    return RunSettings(**{"plan": plan(spec, adapter), "device": "cuda", "rows": 1, "length": 512} | changes)
