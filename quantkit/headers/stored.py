"""What does a folder hold, once configuration and tensors have been heard and agree?

`StoredWeights` is the reading of the tensors, completed by what only the configuration can say (activation bits, layout).
Where both speak and differ, nothing is chosen: the error names both.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError, VerificationError
from quantkit.headers.claims import is_foreign, read_claim
from quantkit.headers.facts import DENSE, FORMATS, UNKNOWN, Facts
from quantkit.headers.gguf import read_gguf
from quantkit.headers.layers import quantized_layers
from quantkit.headers.plain import read_object
from quantkit.headers.tensorfiles import TensorIndex, read_tensor_index
from quantkit.spec import DENSE_BITS, QuantizationSpec

DENSE_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
EMBEDDING = re.compile(r"(?:^|\.)(?:wte|wpe|shared|embed_in|embed_tokens\w*|(?:\w*_)?embeddings?)$")
HEAD = re.compile(r"^(?:(?:model|language_model)\.)*(?:lm_head|embed_out|output)$")
OLDER_CONFIGS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files in which AutoGPTQ and AutoAWQ kept what now stands in `config.json`."""
FACTS = ("weights_bits", "weights_dtype", "group_size", "symmetric", "double_quant", "activations_bits", "kv_cache_bits")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeights:
    """What a folder's or file's weights are; the fields of a `QuantizationSpec` are named as there."""

    kind: str
    """Storage kind: `dense`, `bitsandbytes-4bit`, `bitsandbytes-8bit`, `gptq`, `awq`, `auto-round`, `compressed-tensors`,
    `hqq`, `torchao`, `fp8`, `quanto`, `aqlm`, `eetq`, `higgs`, `mxfp4`, `bitnet`, `gguf`, or a `quant_method` as written."""
    weights_bits: int | None
    weights_dtype: str | None
    group_size: int | None = None
    symmetric: bool | None = None
    double_quant: bool = False
    activations_bits: int | None = None
    kv_cache_bits: int | None = None
    lm_head_dtype: str | None = None
    """Data type of the output head, of the embeddings where the head is tied to them; None where neither was found."""
    layout: str | None = None
    """The format's own name for its packing, e.g. `pack-quantized`."""
    quantized_layers: int = 0
    mixed: str = ""
    """How layers differ from each other, in words; empty when all quantized layers are alike."""
    size_bytes: int = 0
    evidence: tuple[tuple[str, str], ...] = ()
    """(source, statement) pairs in the order they were heard."""

    @property
    def format(self) -> str:
        """Return the storage format as specs name it."""
        return FORMATS.get(self.kind, self.kind)

    @property
    def is_quantized(self) -> bool:
        """Whether the weights stand on a quantization grid."""
        return self.weights_dtype not in DENSE_BITS

    def to_spec(self, method: str) -> QuantizationSpec | None:
        """Return these weights as a spec under a method's name, or None when bits or type could not be told."""
        if self.weights_bits is None or self.weights_dtype is None:
            return None
        try:
            return QuantizationSpec(
                method=method,
                format=self.format,
                lm_head_dtype=self.lm_head_dtype or "unknown",
                **{name: getattr(self, name) for name in FACTS},
            )
        except UsageError:
            return None

    def contradictions(self, spec: QuantizationSpec) -> list[str]:
        """Return each fact in which a spec differs from these weights, as `field: it says …, the tensors say …`."""
        found = []
        for name in (*FACTS, "format", "lm_head_dtype"):
            said, here = getattr(spec, name), getattr(self, name)
            if said is not None and here is not None and said != here:
                found.append(f"{name} {said!r} (the tensors say {here!r})")
        if self.mixed:
            found.append(f"layers that are alike (the tensors say {self.mixed})")
        return found

    def describe(self) -> str:
        """Return a short phrase, e.g. `nf4 4-bit (bitsandbytes-4bit)` or `bfloat16`."""
        if not self.is_quantized and self.kind == DENSE:
            return str(self.weights_dtype)
        group = {None: "", -1: " per row"}.get(self.group_size, f" g{self.group_size}")
        bits = "? bit" if self.weights_bits is None else f"{self.weights_bits}-bit"
        return f"{self.weights_dtype or 'unknown grid'} {bits}{group} ({self.kind})"


def read_stored_weights(folder: Path | str, *, weights: bool = True) -> StoredWeights:
    """Return what a model folder, or a single `.safetensors` or `.gguf` file, holds.

    With `weights=False` a folder may lack its tensors (a hub id of which only the small files were fetched); then only the
    configuration speaks, and the evidence says so.

    Raises:
        UsageError: nothing readable is there, or a file is damaged.
        VerificationError: configuration and tensors disagree; the text names both sides.
    """
    folder = Path(folder)
    if folder.suffix.lower() == ".gguf" and folder.is_file():
        return _gguf(folder)
    config = read_object(folder / "config.json") if (folder / "config.json").is_file() else None
    source, claim = _claim(folder, config)
    has_tensors = folder.is_file() or any(folder.glob("*.safetensors")) or (folder / "model.safetensors.index.json").is_file()
    if not has_tensors and (found := sorted(folder.glob("*.gguf"))):
        return _gguf(found[0])
    if not has_tensors and not weights and config is not None:
        return _from_config(config, source, claim)
    index = read_tensor_index(folder)
    return _reconciled(folder, index, source, claim)


def quantization_config_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return a `config.json`'s `quantization_config`, also where composite models keep it (`text_config`)."""
    text = config.get("text_config")
    for holder in (config, text if isinstance(text, Mapping) else {}):
        for key in ("quantization_config", "compression_config"):
            found = holder.get(key)
            if isinstance(found, Mapping) and found:
                return found
    return None


def _claim(folder: Path, config: Mapping[str, Any] | None) -> tuple[str, Facts | None]:
    stated = quantization_config_of(config) if config is not None else None
    if stated is not None:
        return "config.json quantization_config", read_claim(stated)
    for name, method in OLDER_CONFIGS.items():
        if folder.is_dir() and (folder / name).is_file():
            return name, read_claim({"quant_method": method} | read_object(folder / name))
    return "config.json", Facts(kinds=(DENSE,)) if config is not None else None


def _reconciled(folder: Path, index: TensorIndex, source: str, claim: Facts | None) -> StoredWeights:
    layers = quantized_layers(index, claim.group_size if claim else None)
    sizes: Counter[Facts] = Counter()
    for facts, size in layers.values():
        sizes[facts] += size
    dense = _dense_matrices(index, set(layers))
    seen = sizes.most_common(1)[0][0] if sizes else Facts(kinds=(DENSE,), **_dense_facts(folder, index, dense))
    silent = False
    if claim is not None and is_foreign(claim) and (seen.kinds == (UNKNOWN,) or (not sizes and _holds_codes(index))):
        silent, seen = True, replace(claim, weights_bits=None)  # what nobody here can read contradicts nothing
    if claim is not None and (differences := claim.differences(seen)):
        parts = "; ".join(f"{name}: {said!r} against {here!r}" for name, said, here in differences)
        stated = "has no quantization_config" if claim.kinds == (DENSE,) else f"says {claim.kinds[0]}"
        raise VerificationError(
            f"{folder}: {source} {stated}, the tensors are {_phrase(seen)}; they disagree ({parts}). One of the two is wrong"
        )
    evidence = [(source, _phrase(claim))] if claim is not None and claim.kinds[0] != DENSE else []
    told = f"{_phrase(seen)} in {len(layers) or len(dense)} layers" + _left_out(layers, dense)
    evidence.append(("tensors", "codes in a layout that is not known here" if silent else told))
    kinds = [kind for kind in (claim.kinds if claim else ()) if kind in seen.kinds]
    return StoredWeights(
        kind=kinds[0] if kinds else seen.kinds[0],
        **{name: _first(getattr(seen, name), getattr(claim, name, None)) for name in FACTS if name != "double_quant"},
        double_quant=bool(seen.double_quant),
        lm_head_dtype=_head_dtype(index, layers),
        layout=_first(claim.layout if claim else None, seen.layout),
        quantized_layers=len(layers),
        mixed="; ".join(f"{_phrase(facts)} in {_layers_with(layers, facts)}" for facts in sizes) if len(sizes) > 1 else "",
        size_bytes=index.size_bytes,
        evidence=tuple(evidence),
    )


def _from_config(config: Mapping[str, Any], source: str, claim: Facts | None) -> StoredWeights:
    facts = claim or Facts(kinds=(DENSE,))
    text = config.get("text_config")
    stated = config.get("dtype") or config.get("torch_dtype") or (text.get("dtype") if isinstance(text, Mapping) else None)
    dtype = stated if isinstance(stated, str) and stated in DENSE_BITS else None
    values = {name: getattr(facts, name) for name in FACTS} | {"double_quant": bool(facts.double_quant)}
    if facts.kinds[0] == DENSE:
        values |= {"weights_dtype": dtype, "weights_bits": DENSE_BITS.get(dtype or "")}
    statement = _phrase(facts) if facts.kinds[0] != DENSE else f"no quantization_config, dtype {dtype}"
    said = (source, f"{statement}; the tensors were not read")
    return StoredWeights(kind=facts.kinds[0], **values, lm_head_dtype=dtype, layout=facts.layout, evidence=(said,))


def _gguf(path: Path) -> StoredWeights:
    facts = read_gguf(path)
    said = ("GGUF header", f"version {facts.version}, {facts.architecture}, file type {facts.weights_dtype}")
    return StoredWeights(
        kind="gguf",
        weights_bits=facts.weights_bits,
        weights_dtype=facts.weights_dtype,
        size_bytes=path.stat().st_size,
        evidence=(said,),
    )


def _holds_codes(index: TensorIndex) -> bool:
    return any(len(tensor.shape) >= 2 and tensor.dtype not in DENSE_DTYPES for tensor in index.tensors.values())


def _dense_matrices(index: TensorIndex, quantized: set[str]) -> dict[str, str]:
    found = {}
    for name, tensor in index.tensors.items():
        module, _, leaf = name.rpartition(".")
        is_matrix = leaf == "weight" and len(tensor.shape) >= 2 and tensor.dtype in DENSE_DTYPES
        if is_matrix and module not in quantized and not EMBEDDING.search(module) and not HEAD.match(module):
            found[module] = DENSE_DTYPES[tensor.dtype]
    return found


def _dense_facts(folder: Path, index: TensorIndex, dense: Mapping[str, str]) -> dict[str, Any]:
    by_dtype = Counter(dense.values())
    if not by_dtype:
        by_dtype = Counter(DENSE_DTYPES[t.dtype] for t in index.tensors.values() if t.dtype in DENSE_DTYPES)
    if not by_dtype:
        raise UsageError(f"{folder}: the safetensors files hold no weights that are known here")
    dtype = by_dtype.most_common(1)[0][0]
    return {"weights_dtype": dtype, "weights_bits": DENSE_BITS.get(dtype)}


def _head_dtype(index: TensorIndex, layers: Mapping[str, tuple[Facts, int]]) -> str | None:
    embedding = None
    for name in layers:
        if HEAD.match(name):
            return layers[name][0].weights_dtype
    for name, tensor in index.tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and HEAD.match(module):
            return DENSE_DTYPES.get(tensor.dtype)
        if leaf == "weight" and EMBEDDING.search(module) and not module.endswith("wpe"):
            embedding = embedding or DENSE_DTYPES.get(tensor.dtype)
    return embedding


def _left_out(layers: Mapping[str, object], dense: Mapping[str, str]) -> str:
    if not layers or not dense:
        return ""
    names = ", ".join(sorted(dense)[:2]) + (", …" if len(dense) > 2 else "")
    return f"; {len(dense)} matrices are dense ({names})"


def _layers_with(layers: Mapping[str, tuple[Facts, int]], facts: Facts) -> str:
    names = [name for name, (found, _) in layers.items() if found == facts]
    return f"{len(names)} layers ({names[0]}{', …' if len(names) > 1 else ''})"


def _phrase(facts: Facts) -> str:
    if facts.kinds[0] == DENSE:
        return f"dense {facts.weights_dtype}" if facts.weights_dtype else "dense"
    parts = [facts.kinds[0], facts.weights_dtype or ("" if facts.weights_bits is None else f"{facts.weights_bits} bit")]
    parts += [{-1: "one scale per row"}.get(facts.group_size, f"group_size {facts.group_size}")] if facts.group_size else []
    parts += ["double_quant"] if facts.double_quant else []
    return " ".join(part for part in parts if part)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
