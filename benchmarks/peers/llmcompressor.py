"""llm-compressor: its modifiers with their defaults, symmetric integers in groups as its presets have them."""

from typing import Any

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

from peers.common import Job, Meter, load_model, read_job, write_answer

HEAD = ["lm_head"]


def recipe(job: Job) -> list[Any]:
    """Return the modifiers of a method."""
    weights = QuantizationArgs(num_bits=job.weights_bits, group_size=job.group_size, symmetric=True, strategy="group")
    groups = {"config_groups": {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}, "ignore": HEAD}
    w8a8 = {"targets": "Linear", "scheme": "W8A8", "ignore": HEAD}
    return {
        "RTN": lambda: [QuantizationModifier(**groups)],
        "GPTQ": lambda: [GPTQModifier(**groups)],
        "AWQ": lambda: [AWQModifier(), QuantizationModifier(**groups)],
        "W8A8": lambda: [QuantizationModifier(**w8a8)],
        "SmoothQuant": lambda: [SmoothQuantModifier(), QuantizationModifier(**w8a8)],
        "SmoothQuant 0.8": lambda: [SmoothQuantModifier(smoothing_strength=0.8), QuantizationModifier(**w8a8)],
    }[job.method]()


def main() -> None:
    """Quantize and save in compressed-tensors."""
    job, meter = read_job(), Meter()
    model, tokenizer = load_model(job)
    data = Dataset.from_dict({"input_ids": job.rows, "attention_mask": [[1] * len(row) for row in job.rows]})
    steps = recipe(job)
    settings = {"max_seq_length": max(map(len, job.rows)), "num_calibration_samples": len(job.rows)}
    with meter.quantizing():
        if job.method in ("RTN", "W8A8"):
            oneshot(model=model, recipe=steps)
        else:
            oneshot(model=model, tokenizer=tokenizer, dataset=data, recipe=steps, **settings)
    model.save_pretrained(job.out, save_compressed=True)
    tokenizer.save_pretrained(job.out)
    write_answer(job, meter)


if __name__ == "__main__":
    main()
