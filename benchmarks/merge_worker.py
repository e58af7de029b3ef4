"""One merge in a process of its own: seconds and peak memory, as one JSON line on stdout. Called by `merge.py`."""

import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> int:
    """Read the job from the command line, merge, print what it took."""
    job = json.loads(sys.argv[1])
    run = {"quantkit": quantkit_merge, "PEFT": peft_merge}[job["tool"]]
    prepare(job["tool"], job["kind"])
    if job["tool"] == "quantkit":
        job["recipe"] = recipe_of(job["kind"])
    imported, wall, processor = memory_bytes("VmRSS"), time.perf_counter(), time.process_time()
    run(**{key: value for key, value in job.items() if key != "tool"})
    seconds, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = memory_bytes("VmHWM")
    found = {"seconds": seconds, "processor_seconds": processor, "peak_bytes": peak, "imported_bytes": imported}
    print(json.dumps(found | {"above_imports_bytes": peak - imported}))
    return 0


def prepare(tool: str, kind: str) -> None:
    """Import what the merge will import, so that its time and memory are told apart from the libraries'."""
    import peft
    import transformers

    if kind != "16 bit":
        import bitsandbytes

        _ = bitsandbytes
    _ = peft.PeftModel, transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM
    transformers.utils.logging.disable_progress_bar()
    if tool == "quantkit":
        import quantkit.merging.stream

        _ = quantkit.merging.stream


def memory_bytes(field: str) -> int:
    """Return a line of the kernel's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024


def recipe_of(kind: str) -> Any:
    """Return the recipe of a job's base, which a record would state."""
    from quantkit import AdapterPlan, PlanContext
    from quantkit.methods import installed_methods

    context = PlanContext(adapter=AdapterPlan(), compute_dtype="bfloat16", dense_dtype="bfloat16")
    return installed_methods().plan("NoQuant" if kind == "16 bit" else "QLORA", {}, context)


def quantkit_merge(base: str, adapter: str, out: str, kind: str, recipe: Any) -> None:  # noqa: ARG001 (the recipe says it)
    """Merge streaming; the NF4 jobs are one and the same here."""
    from quantkit.merging import merge_streaming

    merge_streaming(base, adapter, Path(out), fingerprint=None, recipe=recipe, progress=False, overwrite=True)


def peft_merge(base: str, adapter: str, out: str, kind: str) -> None:
    """Load, `merge_and_unload`, `save_pretrained`; an NF4 base is merged as it is, or dequantized first."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config: Any = None
    if kind != "16 bit":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, quantization_config=config)
    if kind == "NF4, dequantized":
        model = model.dequantize()
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(out)


if __name__ == "__main__":
    sys.exit(main())
