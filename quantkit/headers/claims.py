"""What does a `quantization_config` say about the weights?

One small reader per format, each turning the format's own keys into the shared words. It is testimony, to be compared with
the tensors; nothing is decided here. Building transformers' config classes instead would import torch and fill in defaults
that the file never stated.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from quantkit.headers.facts import DENSE, UNKNOWN, Facts

Config = Mapping[str, Any]


def read_claim(config: Config) -> Facts:
    """Return what a `quantization_config` states; facts it does not state, or states in another type, are None.

    >>> read_claim({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}).weights_dtype
    'int4'
    """
    named = config.get("quant_method")
    method = named.lower() if isinstance(named, str) else ""
    if not method:
        method = "bitsandbytes" if "load_in_4bit" in config or "load_in_8bit" in config else _by_keys(config)
    reader = READERS.get(method)
    return reader(config) if reader else Facts(kinds=(_word(method),), weights_bits=_bits(config.get("bits")))


def is_foreign(claim: Facts) -> bool:
    """Whether a claim names a `quant_method` that is not known here, so that its tensors cannot be, either."""
    kind = claim.kinds[0]
    return kind not in {DENSE, UNKNOWN, *READERS} and not kind.startswith("bitsandbytes-")


def _by_keys(config: Config) -> str:
    if "w_bit" in config or "zero_point" in config:
        return "awq"
    if "desc_act" in config or "damp_percent" in config:
        return "gptq"
    return UNKNOWN


def _bitsandbytes(config: Config) -> Facts:
    if config.get("load_in_8bit") or config.get("_load_in_8bit"):
        return Facts(kinds=("bitsandbytes-8bit",), weights_bits=8, weights_dtype="int8", symmetric=True, activations_bits=8)
    return Facts(
        kinds=("bitsandbytes-4bit",),
        weights_bits=4,
        weights_dtype=_text(config.get("bnb_4bit_quant_type")),
        double_quant=_flag(config.get("bnb_4bit_use_double_quant")),
    )


def _gptq(config: Config) -> Facts:
    bits = _bits(config.get("bits"))
    return Facts(
        kinds=("gptq",),
        weights_bits=bits,
        weights_dtype=_int(bits),
        group_size=_group(config.get("group_size")),
        symmetric=_flag(config.get("sym")),
        layout=_text(config.get("checkpoint_format") or config.get("format")) or "gptq",
    )


def _awq(config: Config) -> Facts:
    bits = _bits(config.get("bits", config.get("w_bit")))
    zero_point = _flag(config.get("zero_point"))
    return Facts(
        kinds=("awq",),
        weights_bits=bits,
        weights_dtype=_int(bits),
        group_size=_group(config.get("group_size", config.get("q_group_size"))),
        symmetric=None if zero_point is None else not zero_point,
        layout=(_text(config.get("version") or config.get("format")) or "gemm").lower(),
    )


def _auto_round(config: Config) -> Facts:
    bits = _bits(config.get("bits"))
    return Facts(
        kinds=("auto-round",),
        weights_bits=bits,
        weights_dtype=_int(bits) if _text(config.get("data_type")) in (None, "int") else None,
        group_size=_group(config.get("group_size")),
        symmetric=_flag(config.get("sym")),
        layout=_text(config.get("packing_format")),
    )


def _compressed_tensors(config: Config) -> Facts:
    groups = config.get("config_groups")
    schemes = [group for group in groups.values() if isinstance(group, Mapping)] if isinstance(groups, Mapping) else []
    weights = [scheme["weights"] for scheme in schemes if isinstance(scheme.get("weights"), Mapping)]
    layout = _text(config.get("format"))
    if not weights:
        return Facts(kinds=("compressed-tensors", DENSE), layout=layout)
    stated = [_scheme(entry) for entry in weights]
    activations = [scheme.get("input_activations") for scheme in schemes]
    kv_cache = config.get("kv_cache_scheme")
    return Facts(
        kinds=("compressed-tensors",),
        **{name: _same([facts[name] for facts in stated]) for name in stated[0]},
        activations_bits=_same([_bits(entry.get("num_bits")) if isinstance(entry, Mapping) else None for entry in activations]),
        kv_cache_bits=_bits(kv_cache.get("num_bits")) if isinstance(kv_cache, Mapping) else None,
        layout=layout,
    )


def _scheme(weights: Config) -> dict[str, Any]:
    bits = _bits(weights.get("num_bits"))
    strategy = _text(weights.get("strategy"))
    is_float = _text(weights.get("type")) == "float"
    dtype = {8: "float8_e4m3fn", 4: "fp4"}.get(bits or 0) if is_float else _int(bits)
    per_row = strategy == "channel"
    grouped = strategy in ("group", "tensor_group", None)
    return {
        "weights_bits": bits,
        "weights_dtype": dtype,
        "group_size": -1 if per_row else _group(weights.get("group_size")) if grouped else None,
        "symmetric": _flag(weights.get("symmetric")),
    }


def _hqq(config: Config) -> Facts:
    inner = config.get("quant_config")
    weights = inner.get("weight_quant_params") if isinstance(inner, Mapping) else None
    weights = weights if isinstance(weights, Mapping) else {}
    bits = _bits(weights.get("nbits"))
    return Facts(
        kinds=("hqq",),
        weights_bits=bits,
        weights_dtype=_int(bits),
        group_size=_group(weights.get("group_size")),
        symmetric=False,
    )


def _torchao(config: Config) -> Facts:
    stated = config.get("quant_type")
    settings: Any = {}
    if isinstance(stated, Mapping):
        default = stated.get("default")
        stated, settings = (default.get("_type"), default.get("_data")) if isinstance(default, Mapping) else (None, {})
    name = re.sub(r"[^a-z0-9]", "", (_text(stated) or "").lower())
    data = settings if isinstance(settings, Mapping) else {}
    dtype_entry = data.get("weight_dtype")
    dtype = _text(dtype_entry.get("_data")) if isinstance(dtype_entry, Mapping) else None
    kind = re.search(r"(u?int|float)(\d)(?=weight)", name)
    bits = int(kind[2]) if kind else int(dtype[-1]) if dtype and re.fullmatch(r"u?int\d", dtype) else None
    if kind and dtype is None:
        dtype = "float8_e4m3fn" if kind[1] == "float" else f"int{bits}"
    activations = re.search(r"(?:int|float)(\d)dynamicactivation", name) or re.search(r"(?:int|float)(\d)static", name)
    return Facts(
        kinds=("torchao",),
        weights_bits=bits,
        weights_dtype=dtype,
        group_size=_group(data.get("group_size")),
        activations_bits=int(activations[1]) if activations else None,
        layout=_text(stated),
    )


def _fp8(config: Config) -> Facts:
    rows = config.get("quant_method") == "fbgemm_fp8"
    return Facts(
        kinds=("fp8",),
        weights_bits=8,
        weights_dtype="float8_e4m3fn",
        group_size=-1 if rows else None,
        symmetric=True,
        activations_bits=8,
        layout=_text(config.get("quant_method")),
    )


def _named_weights(kind: str) -> Callable[[Config], Facts]:
    def read(config: Config) -> Facts:
        dtype = _text(config.get("weights"))
        bits = re.fullmatch(r"(?:int|qint|float)(\d)", dtype or "")
        activations = re.fullmatch(r"(?:int|qint|float)(\d)", _text(config.get("activations")) or "")
        return Facts(
            kinds=(kind,),
            weights_bits=int(bits[1]) if bits else None,
            weights_dtype={"float8": "float8_e4m3fn"}.get(dtype or "", dtype),
            activations_bits=int(activations[1]) if activations else None,
        )

    return read


def _aqlm(config: Config) -> Facts:
    count, width, columns = (config.get(key) for key in ("num_codebooks", "nbits_per_codebook", "in_group_size"))
    if not all(isinstance(value, int) and value > 0 for value in (count, width, columns)):
        return Facts(kinds=("aqlm",))
    return Facts(kinds=("aqlm",), weights_bits=_bits(count * width // columns), weights_dtype="aqlm")  # type: ignore[operator]


def _fixed(kind: str, dtype: str, bits: int, group_size: int | None = None) -> Callable[[Config], Facts]:
    return lambda _config: Facts(kinds=(kind,), weights_bits=bits, weights_dtype=dtype, group_size=group_size)


def _higgs(config: Config) -> Facts:
    return Facts(
        kinds=("higgs",),
        weights_bits=_bits(config.get("bits")),
        weights_dtype="higgs",
        group_size=_group(config.get("group_size")),
    )


READERS: dict[str, Callable[[Config], Facts]] = {
    "bitsandbytes": _bitsandbytes,
    "gptq": _gptq,
    "awq": _awq,
    "auto-round": _auto_round,
    "intel/auto-round": _auto_round,
    "compressed-tensors": _compressed_tensors,
    "hqq": _hqq,
    "torchao": _torchao,
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "quanto": _named_weights("quanto"),
    "eetq": _named_weights("eetq"),
    "aqlm": _aqlm,
    "higgs": _higgs,
    "mxfp4": _fixed("mxfp4", "mxfp4", 4, 32),
    "bitnet": _fixed("bitnet", "ternary", 2),
}


def _same(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= 64 and value.isprintable() else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _bits(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 32 else None


def _int(bits: int | None) -> str | None:
    return None if bits is None else f"int{bits}"


def _group(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and (value == -1 or value > 0) else None


def _word(method: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", method)[:32].strip("-") or UNKNOWN
