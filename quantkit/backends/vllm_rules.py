"""Will vLLM serve what a plan is about to write, and by which kernels?

What no loader of a format reads is an error before anything is computed; what only slower or fewer kernels read is a note.
Facts from vLLM's sources (`quantization/gptq.py`, `gptq_marlin.py`, `awq.py`, `awq_marlin.py`, their successors `auto_gptq.py`
and `auto_awq.py`, `compressed_tensors/schemes`, `utils/marlin_utils.py`, `utils/quant_utils.py`, read in 2026); nothing here
was run on a GPU. Finding out when the server starts costs a day.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from quantkit.errors import UsageError
from quantkit.spec import QuantizationSpec

GROUP_SIZES = (-1, 32, 64, 128)
"""Group sizes of Marlin, vLLM's fast kernels."""
MARLIN_INPUT, MARLIN_OUTPUT = 128, 64
"""What the numbers of a layer's input and output columns must be multiples of for Marlin."""
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that vLLM runs as one matrix, so that they must be stored alike."""


def check_servable(spec: QuantizationSpec, model_config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return notes on how vLLM reads integer weights of this spec; `model_config` is the base's `config.json`, if known.

    Raises:
        UsageError: the format cannot hold such weights, or none of its loaders reads them.
    """
    if spec.format in ("gptq", "awq"):
        if spec.group_size not in GROUP_SIZES:
            raise UsageError(
                f"group_size is {spec.group_size}; in the format {spec.format} it is one of"
                f" {', '.join(str(size) for size in GROUP_SIZES)} (what vLLM's kernels read); or choose compressed-tensors"
            )
        for name, size in _sizes(model_config).items():
            if size * spec.weights_bits % 32:
                raise UsageError(
                    f"the model's {name} is {size}, and {size} codes of {spec.weights_bits} bits do not fill whole 32-bit words"
                    f" as the format {spec.format} wants it; choose compressed-tensors"
                )
    if spec.format == "awq":
        if spec.weights_bits != 4:
            raise UsageError(f"weights_bits is {spec.weights_bits}; the AWQ format holds 4 bits. Choose compressed-tensors")
        if spec.symmetric:
            raise UsageError(
                "symmetric is True; the AWQ format's kernels read weights with zero points. Choose compressed-tensors"
            )
    return notes_on_weights(spec, model_config)


def notes_on_weights(spec: QuantizationSpec, model_config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the notes of `check_servable`, and refuse nothing."""
    notes = []
    if spec.format == "gptq" and spec.symmetric is False:
        notes.append(
            "Asymmetric weights are stored as checkpoint_format gptq_v2, which GPTQModel and transformers with it read."
        )
    if spec.format == "compressed-tensors" and (spec.weights_bits not in (4, 8) or spec.group_size not in GROUP_SIZES):
        notes.append(
            "vLLM reads compressed-tensors integers of 4 and 8 bits in groups of -1, 32, 64 or 128; this checkpoint is for"
            " transformers."
        )
    elif not _marlin_type(spec):
        notes.append(
            "vLLM has no Marlin kernel for this grid: versions with `gptq.py` run it slower and in float16 only (zero points"
            " from 0.11.1 on), those with `auto_gptq.py` refuse it."
        )
    elif odd := _odd_for_marlin(_sizes(model_config)):
        notes.append(
            f"vLLM's Marlin kernels do not take {odd}; newer versions pad them, others use slower kernels, if there are any."
        )
    if spec.format == "awq":
        notes.append("vLLM runs AWQ weights in bfloat16 by Marlin only; with other kernels start it with --dtype float16.")
    return tuple(notes)


def split_fusions(quantized: Iterable[str], left_out: Iterable[str]) -> tuple[str, ...]:
    """Return a note for the first block in which some, but not all, layers that vLLM fuses are quantized (full names)."""
    dense_names = set(left_out)
    for name in sorted(quantized):
        parent, _, leaf = name.rpartition(".")
        for group in FUSED:
            dense = [part for part in group if f"{parent}.{part}" in dense_names]
            if leaf in group and dense:
                return (
                    f"vLLM runs {', '.join(group)} as one matrix and refuses a checkpoint that quantizes only some of them; in"
                    f" {parent}, {', '.join(dense)} would stay dense. Ignore all of them, or none, to serve it.",
                )
    return ()


def check_servable_activations(spec: QuantizationSpec) -> tuple[str, ...]:
    """Return a note where vLLM reads such compressed-tensors integers, but leaves activations unrounded that a spec rounds.

    In its source the formats with rounded activations stand in `is_activation_quantization_format`.
    """
    if spec.activations_bits is None or (spec.weights_bits, spec.group_size) == (8, -1):
        return ()
    return (
        "vLLM rounds int8 activations beside 8-bit weights with one scale per row only; it runs this checkpoint with 16-bit"
        " activations. transformers rounds them.",
    )


def _marlin_type(spec: QuantizationSpec) -> bool:
    if spec.format == "gptq":
        return spec.weights_bits in (4, 8) and spec.symmetric is True
    return True


def _odd_for_marlin(sizes: Mapping[str, int]) -> str:
    unit = {name: MARLIN_OUTPUT if name == "key and value width" else MARLIN_INPUT for name in sizes}
    odd = [f"{name} {size} (no multiple of {unit[name]})" for name, size in sizes.items() if size % unit[name]]
    return " and ".join(odd)


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the widths that linear layers have in the model, as far as its configuration tells."""
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    sizes = {"hidden_size": hidden, "intermediate_size": config.get("intermediate_size")}
    if isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        head_dim = config.get("head_dim")
        head_dim = head_dim if isinstance(head_dim, int) else hidden // heads
        sizes["attention width"] = heads * head_dim
        groups = config.get("num_key_value_heads")
        sizes["key and value width"] = (groups if isinstance(groups, int) else heads) * head_dim
    return {name: size for name, size in sizes.items() if isinstance(size, int) and size > 0}
