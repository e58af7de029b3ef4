"""In which words is it said whether something can be exported?"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Outcome = Literal["as it is", "exact", "lossy", "no"]
Step = Literal["none", "repack", "dequantize", "convert", "plugin", "route"]

OUTCOMES: dict[Outcome, str] = {
    "as it is": "the folder is read as it stands; nothing is written",
    "exact": "the same model: equal codes and scales, or the very weights that the layers compute with",
    "lossy": "another model: weights are rounded again, or activations are no longer rounded",
    "no": "there is no way from these weights; what to do instead is said",
}
STEPS: dict[Step, str] = {
    "none": "nothing to do",
    "repack": "quantkit writes the same codes and scales in the other layout",
    "dequantize": "quantkit writes the weights that the layers compute with, dense, tensor by tensor",
    "convert": "llama.cpp's converter is run, and what it wrote is loaded and compared",
    "plugin": "the plugin that declares the format rewrites it (`export_model`), and what was written is loaded and compared",
    "route": "not done by this command; the way is named",
}
TARGETS: dict[str, str] = {
    "transformers": "`AutoModelForCausalLM.from_pretrained(folder)`, or PEFT for an adapter",
    "dense": "`--to transformers --dequantize`: 16- or 32-bit weights that everything reads",
    "vllm": "`vllm serve folder`",
    "gguf": "a `.gguf` file for llama.cpp and what is built on it",
    "awq": "the AWQ format (`gemm`)",
    "gptq": "the GPTQ format",
    "compressed-tensors": "compressed-tensors",
}
SOURCES: dict[str, str] = {
    "dense": "16 or 32 bit",
    "bnb-4bit": "bitsandbytes NF4, FP4",
    "bnb-int8": "bitsandbytes LLM.int8",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "ct-int": "compressed-tensors, integers",
    "ct-int-act": "compressed-tensors, integers and rounded activations",
    "ct-float8": "compressed-tensors FP8",
    "fp8": "FP8 in blocks",
    "torchao": "torchao",
    "gguf-dense": "GGUF, 16 or 32 bit",
    "gguf-quantized": "GGUF, quantized",
    "lora": "adapter LoRa on a dense base",
    "lora-quantized": "adapter LoRa on a quantized base",
    "dora": "adapter DoRa",
    "vera": "adapter VeRa",
    "other": "any other format (quanto, AQLM, EETQ, HIGGS, MXFP4, …)",
}
"""What may be exported, in the order of the table; formats that plugins declare stand before `other`."""
FROM_PARENT = (
    "Its levels are not those of an integer grid, so they would be rounded a second time. Quantize the 16-bit model it was made"
    " from (`quantkit quantize --method {}`){}."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Whether a target can be had from a source, and how."""

    outcome: Outcome
    step: Step
    how: str
    """What is done, or the route, in one or two sentences; `{name}` stands for the artifact."""
    needs: tuple[str, ...] = ()
    """Distributions that whoever reads the result must have installed."""
    source: str = ""
    """What the answer rests on: a public address, `tested` (in `tests/exporting` or `tests/backends`), or `measured: …`."""
    notes: tuple[str, ...] = ()
    """What this artifact's sizes, bits and layers add."""

    @property
    def possible(self) -> bool:
        """Whether the target can be had from these weights at all."""
        return self.outcome != "no"

    def for_artifact(self, name: str) -> "Answer":
        """Return the answer with the artifact's name in its commands."""
        return replace(self, how=self.how.replace("{name}", name))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self) | {"needs": list(self.needs), "notes": list(self.notes), "possible": self.possible}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What can become of a storage format that a plugin declares."""

    title: str
    """What the table calls it."""
    answers: Mapping[str, Answer]
    """Target to answer. A target that is left out has no way."""


def as_it_is(how: str, source: str, *needs: str) -> Answer:
    """Return the answer that nothing has to be done; `needs` are distributions that whoever reads it must have."""
    return Answer(outcome="as it is", step="none", how=how, source=source, needs=needs)


def route(outcome: Outcome, how: str, source: str) -> Answer:
    """Return an answer that this command does not carry out: a way in words and commands."""
    return Answer(outcome=outcome, step="route", how=how, source=source)


def from_parent(method: str, more: str = "") -> Answer:
    """Return the answer for weights that would be rounded a second time; `method` is the name of another, with its flags."""
    return route("lossy", FROM_PARENT.format(method, more), "tested")


def written(outcome: Outcome, how: str, source: str) -> Answer:
    """Return an answer that the plugin's own `export_model` carries out."""
    return Answer(outcome=outcome, step="plugin", how=how, source=source)
