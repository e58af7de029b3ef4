"""Which answer of the table fits one artifact, and what do its own bits, sizes and layers change about it?

Bits, group size and widths decide whether the same grid fits into another layout; a repack that cannot be is answered with the
reason that the writer of that layout would give. The table alone would promise AWQ to 3-bit weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from quantkit.backends.vllm_rules import check_servable, check_servable_activations
from quantkit.errors import UsageError
from quantkit.exporting.answers import TARGETS, Answer
from quantkit.exporting.rows import Rows
from quantkit.headers import StoredWeights
from quantkit.headers.facts import UNKNOWN
from quantkit.spec import DENSE_BITS, QuantizationSpec

GPTQ_BITS = (2, 3, 4, 8)
"""Widths that the GPTQ layout holds in whole words."""
ADAPTERS = {"LoRa": "lora", "DoRa": "dora", "VeRa": "vera"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What is to be exported: a folder's weights, or an adapter and the weights of its base."""

    name: str
    stored: StoredWeights | None = None
    """A model's weights; None for an adapter."""
    adapter: str | None = None
    """`LoRa`, `DoRa`, `VeRa`, or another of PEFT's kinds; None for a model."""
    base: QuantizationSpec | None = None
    """What an adapter's base holds, where that is known."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The model's `config.json`."""
    rows: Rows = field(default_factory=Rows, repr=False)
    """What can be exported to what; the default is quantkit's own rows."""

    @property
    def title(self) -> str:
        """Return what the table calls such weights."""
        return self.rows.sources[self.source]

    @property
    def source(self) -> str:
        """Return the row of the table."""
        if self.adapter is not None:
            kind = ADAPTERS.get(self.adapter, "other")
            return "lora-quantized" if kind == "lora" and self.base is not None and self.base.is_quantized else kind
        return _source(self.stored, self.rows) if self.stored is not None else "other"


def answer_for(holding: Holding, target: str) -> Answer:
    """Return the answer for one artifact.

    Raises:
        UsageError: there is no such target.
    """
    if target not in TARGETS:
        raise UsageError(f"nothing is exported to {target!r}; known: {', '.join(TARGETS)}")
    answer = holding.rows.table[holding.source, target].for_artifact(holding.name)
    stored = holding.stored
    if (differing := _differing(holding)) and answer.step in ("repack", "dequantize", "plugin"):
        how = f"Its layers differ: {differing}. Only uniform folders are rewritten."
        return replace(answer, outcome="no", step="route", how=how)
    if answer.step == "repack" and stored is not None:
        answer = _repacked(answer, stored, target, holding.config)
    if target == "vllm" and stored is not None and holding.source in ("gptq", "awq", "ct-int", "ct-int-act"):
        answer = _served(answer, stored, holding.config)
    if absent := holding.rows.not_installed(answer):
        answer = replace(answer, notes=(*answer.notes, f"Not installed here: the method {', '.join(absent)}."))
    lacking = missing(answer.needs)
    if lacking and target != "vllm":
        answer = replace(answer, notes=(*answer.notes, f"Not installed here: {', '.join(lacking)}."))
    return answer


def missing(needs: tuple[str, ...]) -> list[str]:
    """Return the distributions that are not installed here."""
    return [need for need in needs if not _installed(need)]


def repacked_spec(stored: StoredWeights, target: str) -> QuantizationSpec:
    """Return what a repacked folder's weights are; AWQ has zero points, in the grid's middle where the source had none."""
    symmetric = False if target == "awq" else stored.symmetric is not False
    return QuantizationSpec(
        method=UNKNOWN,
        weights_bits=stored.weights_bits or 0,
        weights_dtype=stored.weights_dtype or "",
        format=target,
        group_size=stored.group_size,
        symmetric=symmetric,
        lm_head_dtype=stored.lm_head_dtype or "unknown",
    )


def _source(stored: StoredWeights, rows: Rows) -> str:
    if stored.kind == "dense":
        return "dense"
    if stored.kind == "gguf":
        return "gguf-quantized" if stored.weights_dtype not in DENSE_BITS else "gguf-dense"
    if stored.kind == "compressed-tensors":
        dtype = stored.weights_dtype or ""
        if dtype.startswith("int"):
            return "ct-int" if stored.activations_bits is None else "ct-int-act"
        return "ct-float8" if dtype == "float8_e4m3fn" else "other"
    return rows.source_of(stored.kind)


def _differing(holding: Holding) -> str:
    """Return how the layers of a folder differ from each other, in words; empty where they are alike."""
    stated = holding.config.get("quantization_config")
    groups = stated.get("config_groups") if isinstance(stated, Mapping) else None
    if isinstance(groups, Mapping) and len(groups) > 1:
        return f"they stand in {len(groups)} groups ({', '.join(map(str, groups))})"
    return holding.stored.mixed if holding.stored is not None else ""


def _repacked(answer: Answer, stored: StoredWeights, target: str, config: Mapping[str, Any]) -> Answer:
    """Return the answer after looking whether the grid fits the other layout."""
    try:
        if target == "awq" and stored.weights_bits != 4:
            raise UsageError(f"the AWQ format holds 4-bit weights; these have {stored.weights_bits}")
        if target == "gptq" and stored.weights_bits not in GPTQ_BITS:
            raise UsageError(f"the GPTQ format holds {', '.join(map(str, GPTQ_BITS))} bits; these have {stored.weights_bits}")
        notes = check_servable(repacked_spec(stored, target), config)
    except UsageError as error:
        return replace(answer, outcome="no", step="route", how=f"It does not fit: {error}.".replace("..", "."))
    return replace(answer, notes=notes)


def _served(answer: Answer, stored: StoredWeights, config: Mapping[str, Any]) -> Answer:
    spec = stored.to_spec(UNKNOWN)
    if spec is None:
        return answer
    try:
        found = check_servable(spec, config) if stored.activations_bits is None else check_servable_activations(spec)
    except UsageError as error:
        return replace(
            answer, outcome="no", step="route", how=f"vLLM does not read it: {error}.".replace("..", ".") + " `--dequantize` is"
            " read everywhere."
        )  # fmt: skip
    return replace(answer, notes=found)


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
