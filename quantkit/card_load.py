"""With which lines of Python does someone load the artifact, without quantkit?

The code is derived from what the record says the weights are, and is run by the tests. For an adapter it spells out the
quantization of the base, which `adapter_config.json` has no place for: loaded plainly, the adapter would sit on another base
than the one it was trained on.
"""

import json
from collections.abc import Mapping
from typing import Any

from quantkit.spec import QuantizationSpec


def loading_section(record: Mapping[str, Any], base: str) -> str:
    """Return the section's text: one block of Python, or why plain libraries do not suffice."""
    if record["kind"] == "model":
        return _code(_model_lines(record["name"])) + _needs(QuantizationSpec.from_dict(record["quantization"]))
    spec = QuantizationSpec.from_dict(record["recipe"]["spec"])
    lines = _adapter_lines(record, base, spec)
    if lines is None:
        return (
            f"The base is quantized in the format {spec.format!r} when the adapter is loaded, by the plugin of"
            f" {record['recipe']['method']}; with quantkit:\n\n```bash\nquantkit evaluate path/to/{record['name']}\n```"
        )
    return _code(lines) + _needs(spec)


def _model_lines(name: str) -> list[str]:
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"folder = {json.dumps(f'path/to/{name}')}",
        "model = AutoModelForCausalLM.from_pretrained(folder)",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
    ]


def _adapter_lines(record: Mapping[str, Any], base: str, spec: QuantizationSpec) -> list[str] | None:
    compute = record["recipe"]["compute_dtype"]
    config = _quantization_config(spec, record["recipe"].get("options") or {}, compute)
    if config is None:
        return None
    revision = record["base"].get("revision")
    arguments = ["base", f"dtype=torch.{compute}"]
    arguments += [f"revision={json.dumps(revision)}"] if revision else []
    arguments += ["quantization_config=quantization"] if config else []
    return [
        "import torch",
        "from peft import PeftModel",
        f"from transformers import AutoModelForCausalLM, AutoTokenizer{', BitsAndBytesConfig' if config else ''}",
        "",
        f"base = {json.dumps(base)}",
        f"folder = {json.dumps('path/to/' + record['name'])}",
        *config,
        "model = AutoModelForCausalLM.from_pretrained(",
        *(f"    {argument}," for argument in arguments),
        ")",
        "model = PeftModel.from_pretrained(model, folder).eval()",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
    ]


def _quantization_config(spec: QuantizationSpec, options: Mapping[str, Any], compute: str) -> list[str] | None:
    """Return the lines that build the base's quantization, none for a dense base, None where no plain library has them."""
    if not spec.is_quantized or spec.format == "compressed-tensors":
        return []  # dense, or a stored base that transformers reads as it is
    if spec.format != "bitsandbytes":
        return None
    if spec.weights_bits == 4:
        inner = [
            "load_in_4bit=True",
            f"bnb_4bit_quant_type={json.dumps(spec.weights_dtype)}",
            f"bnb_4bit_use_double_quant={spec.double_quant}",
            f"bnb_4bit_compute_dtype=torch.{compute}",
        ]
    else:
        threshold = options.get("llm_int8_threshold")
        inner = ["load_in_8bit=True", *([] if threshold is None else [f"llm_int8_threshold={threshold}"])]
    return ["quantization = BitsAndBytesConfig(", *(f"    {line}," for line in inner), ")"]


def _code(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def _needs(spec: QuantizationSpec) -> str:
    packages = {
        "bitsandbytes": "bitsandbytes",
        "compressed-tensors": "compressed-tensors",
        "gptq": "gptqmodel",
        "awq": "gptqmodel",
    }
    return f"\n\nThis needs `{packages[spec.format]}` installed." if spec.is_quantized and spec.format in packages else ""
