"""One artifact of ours, made in a process of its own: `python quantize_make.py JOB.json`.

The road is that of `quantkit quantize`, function by function; only the text comes from the job, so that every method and
peer sees the same tokens. INT8 has no such road and takes that of a run's base.
"""

import json
import sys
from pathlib import Path
from typing import Any

CHECKED_ROWS = 2
"""Held-out rows on which model in memory, saved folder and a fresh process are compared."""


def main() -> None:
    """Make the artifact; write where it is and what its making took."""
    job = json.loads(Path(sys.argv[1]).read_text())
    from quantkit.calibrating import Texts
    from quantkit.calibration import Calibration
    from quantkit.console import use_stderr
    from quantkit.files import write_json
    from quantkit.gate import GateText
    from quantkit.methods import installed_methods
    from quantkit.modeling import load_tokenizer
    from quantkit_tools.quantizing.making import make_quantized

    use_stderr()
    methods = installed_methods()
    making = making_of_job(job, methods)
    text = json.loads(Path(job["texts"]).read_text())
    calibration = Calibration(tuple(map(tuple, text["calibration"])), text["calibration_source"])
    held_out = GateText(tuple(map(tuple, text["held_out"][:CHECKED_ROWS])), (), text["held_out_source"])
    texts = Texts(calibration if methods.wants_calibration(making.plan) else None, held_out)
    record = make_quantized(making, texts, load_tokenizer(job["model"]), methods)
    stage = next(item for item in record["memory"]["stages"] if item["stage"] == "quantize")
    verified = record["verification"]
    answer = {key: stage[key] for key in ("duration_s", "cpu_s", "peak_rss_bytes")}
    answer |= {"out": str(making.target), "reload": verified["reload"]["mean_kl"], "gate": verified["gate"]["outcome"]}
    write_json(Path(job["answer"]), answer | {"recorded": verified["gate"]["in_memory"]})


def making_of_job(job: dict[str, Any], methods: Any) -> Any:
    """Return what is to be made: the command's own plan where the method quantizes finished models."""
    from quantkit.plan import Stage
    from quantkit_tools.quantizing.flags import build_config
    from quantkit_tools.quantizing.planning import plan_quantization
    from quantkit_tools.quantizing.texts import making_of

    if Stage.TRAINED not in methods.info(job["plugin"]).stages:
        return _base_of_a_run(job, methods)
    values = {"src": job["model"], "method": job["plugin"], "dst": job["out"], "device": "cpu"}
    return making_of(plan_quantization(build_config(values | job["options"], methods), methods))


def _base_of_a_run(job: dict[str, Any], methods: Any) -> Any:
    """Return the making of a base that is quantized while it is loaded, as a run would load it."""
    from quantkit.gate import limits_for
    from quantkit.modeling import ModelSource
    from quantkit.plan import AdapterPlan, PlanContext
    from quantkit.skeleton import read_skeleton
    from quantkit.spec import QuantizationSpec
    from quantkit_registry.fingerprints import fingerprint_base
    from quantkit_registry.names import ArtifactName, format_name
    from quantkit_registry.records import BaseReference
    from quantkit_tools.quantizing.making import Making

    config = read_skeleton(job["model"]).config
    dtype = str(config.dtype).removeprefix("torch.")
    context = PlanContext(
        trains=False,
        adapter=AdapterPlan(kind="NoPeft"),
        compute_dtype=dtype,
        dense_dtype=dtype,
        model_config=config.to_dict(),
    )
    plan = methods.plan(job["plugin"], job["options"], context)
    name = format_name(ArtifactName.of(base=job["model"], dataset=None, adapter=plan.adapter, recipe=plan.spec))
    fingerprint = fingerprint_base(job["model"])
    return Making(
        source=ModelSource(path=job["model"], spec=QuantizationSpec.dense(dtype)),
        plan=plan,
        dtype=dtype,
        name=name,
        target=Path(job["out"]) / name,
        device="cpu",
        limits=limits_for(plan.spec.weights_bits, methods.info(plan.method).gate_limits),
        base=BaseReference(name_or_path=job["model"], revision=None, fingerprint=fingerprint),
        identity=fingerprint,
    )


if __name__ == "__main__":
    main()
