"""How is an artifact called, and what does its name say?

`{base}-{dataset}_{finetuning}_{adapter}_{METHOD}_{tags}`, `{base}-base`, or `{base}-base_{METHOD}_{tags}`. The part after
the last `-` has a strict grammar, so every name parses back to exactly the fields it was formatted from. A name is derived
from a plan; nothing about weights is ever derived from a name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from quantkit.errors import UsageError
from quantkit.plan import AdapterPlan
from quantkit.spec import DTYPE_TAGS, METHOD_NAME, NAME_TAG, QuantizationSpec, QuantMethod
from quantkit_registry.setting_tags import setting_tags

MAX_BYTES = 255
"""The longest file name that common file systems take."""
BASE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
DATASET = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.]*[A-Za-z0-9])?")
FINETUNING = re.compile(r"[A-Z][A-Z0-9]{0,15}")
ADAPTER = re.compile(r"NoPeft|(?:(?:Rs)?(?:LoRa|DoRa)|VeRa)[1-9][0-9]{0,4}")
SNAPSHOT = "base"
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{digit}" for port in ("COM", "LPT") for digit in "0123456789")}
"""Device names that Windows refuses as file names, with whatever stands after the first dot."""
DTYPE_OF_TAG = {tag: dtype for dtype, tag in DTYPE_TAGS.items()} | {"fp8": "float8_e4m3fn"}
HEAD_TAG = {dtype: tag for tag, dtype in DTYPE_OF_TAG.items()}
HEAD_GRIDS = re.compile(r"nf4|fp4|int[1-8]")
NUMBER = "(0|[1-9][0-9]{0,5})"
TAGS = re.compile(rf"(?:w{NUMBER})?(?:_(?:g{NUMBER}|(gch)))?(?:_a{NUMBER})?(?:_kv{NUMBER})?((?:_[a-z0-9]+)*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactName:
    """The fields of a name; `format_name` writes them and `parse_name` reads them back."""

    base: str
    """The model it was made from: letters, digits, `.`, `_` and `-`."""
    dataset: str | None = None
    """Letters, digits and dots; None for a base that was not trained."""
    finetuning: str | None = None
    adapter: str = "NoPeft"
    """`AdapterPlan.label`, e.g. `LoRa16`."""
    method: str = "NoQuant"
    weights_bits: int = 16
    group_size: int | None = None
    activations_bits: int | None = None
    kv_cache_bits: int | None = None
    tags: tuple[str, ...] = ()
    lm_head_dtype: str = "bfloat16"
    merged_dtype: str | None = None
    """Data type the stored weights have, where that is not what the recipe says."""
    merge_policy: str | None = None
    """`base`: folded into the original 16-bit base instead of the dequantized one; `requantized`: a whole model whose weights
    are what the recipe says, said only where a kept adapter has the bare name already."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", tuple(self.tags))
        _require(bool(BASE.fullmatch(self.base)) and ".." not in self.base, "base", self.base, "letters, digits, '.', '_', '-'")
        _require((self.dataset is None) == (self.finetuning is None), "finetuning", self.finetuning, "set if a dataset is")
        if self.dataset is None:
            _require(self.adapter == "NoPeft", "adapter", self.adapter, "NoPeft where there is no dataset")
        else:
            good = bool(DATASET.fullmatch(self.dataset)) and self.dataset.lower() != SNAPSHOT and ".." not in self.dataset
            _require(good, "dataset", self.dataset, f"letters, digits and dots, and not {SNAPSHOT!r}")
            _require(bool(FINETUNING.fullmatch(self.finetuning or "")), "finetuning", self.finetuning, "capitals, e.g. SFT")
        adapter_fits = bool(ADAPTER.fullmatch(self.adapter)) and int(re.sub(r"\D", "", self.adapter) or 1) <= 65536
        _require(adapter_fits, "adapter", self.adapter, "NoPeft or a kind with its rank, e.g. LoRa16")
        _require(bool(METHOD_NAME.fullmatch(self.method)), "method", self.method, "letters and digits, at most 32")
        _require(0 < self.weights_bits <= 64, "weights_bits", self.weights_bits, "between 1 and 64")
        group_fits = self.group_size is None or self.group_size == -1 or 0 < self.group_size < 10**6
        _require(group_fits, "group_size", self.group_size, "a positive number, -1 or None")
        for field in ("activations_bits", "kv_cache_bits"):
            value = getattr(self, field)
            _require(value is None or 0 < value <= 64, field, value, "between 1 and 64, or None")
        for tag in self.tags:
            _require(bool(NAME_TAG.fullmatch(tag)), "tags", tag, "lower-case words that are no other tag")
        _require(_dtype_tag(self.lm_head_dtype) is not None, "lm_head_dtype", self.lm_head_dtype, "a data type names can carry")
        merged_fits = self.merged_dtype is None or self.merged_dtype in DTYPE_TAGS
        _require(merged_fits, "merged_dtype", self.merged_dtype, ", ".join(DTYPE_TAGS))
        fitting = (None, "base") if self.merged_dtype else (None, "requantized")
        _require(self.merge_policy in fitting, "merge_policy", self.merge_policy, f"one of {fitting} with that merged_dtype")
        text = self._text()
        _require(len(text.encode()) <= MAX_BYTES, "name", text, f"at most {MAX_BYTES} bytes long, not {len(text)}")
        _require(text.partition(".")[0].upper() not in RESERVED, "name", text, "no device name of Windows")

    @classmethod
    def of(
        cls,
        *,
        base: str | Path,
        dataset: str | None,
        finetuning: str = "SFT",
        adapter: AdapterPlan,
        recipe: QuantizationSpec,
        merged_dtype: str | None = None,
        merge_policy: str | None = None,
        named: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return the name of what a run makes.

        `base` is a hub id or path; `recipe` is the plan's spec, `merged_dtype` the stored data type where it differs from it,
        `named` the further settings that the name is to carry.
        Dense weights that are not bfloat16 and whose width does not tell them apart carry their data type as first tag.

        Raises:
            UsageError: a part cannot stand in a name; the text says which.
        """
        odd_dense = recipe.weights_dtype == "float16"
        return cls(
            base=base_name(base),
            dataset=dataset,
            finetuning=None if dataset is None else finetuning,
            adapter=adapter.label,
            **_recipe_fields(recipe, (DTYPE_TAGS["float16"],) if odd_dense else (), named),
            merged_dtype=merged_dtype,
            merge_policy=merge_policy,
        )

    def quantized(self, recipe: QuantizationSpec, named: Mapping[str, Any] | None = None) -> Self:
        """Return the name of this model after post-training quantization to `recipe`; `named` is what its own name carries."""
        return replace(self, **_recipe_fields(recipe, (), named), merged_dtype=None, merge_policy=None)

    def merged(self, dtype: str | None, policy: str | None = None) -> Self:
        """Return the name of this adapter folded in; `dtype` and `policy` are `merged_dtype` and `merge_policy`."""
        return replace(self, merged_dtype=dtype, merge_policy=policy)

    def _text(self) -> str:
        words = [SNAPSHOT] if self.dataset is None else [self.dataset, str(self.finetuning), self.adapter]
        tags = self._tag_words()
        if self.dataset is not None or self.method != QuantMethod.NO_QUANT or tags:
            words.append(self.method)
        return f"{self.base}-{'_'.join(words + tags)}"

    def _tag_words(self) -> list[str]:
        head = f"head{_dtype_tag(self.lm_head_dtype)}"
        words = [f"w{self.weights_bits}"]
        if self.group_size is not None:
            words.append("gch" if self.group_size == -1 else f"g{self.group_size}")
        words += [f"a{self.activations_bits}"] if self.activations_bits is not None else []
        words += [f"kv{self.kv_cache_bits}"] if self.kv_cache_bits is not None else []
        words += [*self.tags, head]
        if self.method == QuantMethod.NO_QUANT and words == ["w16", "headbf16"]:
            words = []
        if self.merged_dtype:
            words.append(f"merged{self.merge_policy or ''}{DTYPE_TAGS[self.merged_dtype]}")
        return [*words, "merged"] if self.merge_policy == "requantized" else words


def format_name(name: ArtifactName) -> str:
    """Return the name as text.

    >>> format_name(ArtifactName(base="Qwen3-0.6B", dataset="openmath", finetuning="SFT", adapter="LoRa256",
    ...                          method="QLORA", weights_bits=4))
    'Qwen3-0.6B-openmath_SFT_LoRa256_QLORA_w4_headbf16'
    """
    return name._text()


def parse_name(text: str) -> ArtifactName:
    """Return the fields of a name; the exact inverse of `format_name`.

    Raises:
        UsageError: the text is no name, or another spelling of one; the text says which part does not fit.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise _no_name(text[:40] + "…", f"it is longer than {MAX_BYTES} bytes")
    base, dash, tail = text.rpartition("-")
    if not dash:
        raise _no_name(text, "there is no '-'")
    words = tail.split("_")
    trained = words[0] != SNAPSHOT
    count = 4 if trained else 2
    if len(words) < count and words != [SNAPSHOT]:
        raise _no_name(text, f"after the last '-' stand {len(words)} words, at least {count} are needed")
    head = words[:count]
    method = head[-1] if len(head) == count else QuantMethod.NO_QUANT.value
    try:
        name = ArtifactName(
            base=base,
            dataset=words[0] if trained else None,
            finetuning=words[1] if trained else None,
            adapter=words[2] if trained else "NoPeft",
            method=method,
            **_parse_tags(text, "_".join(words[count:])),
        )
    except UsageError as error:
        raise error if str(error).startswith("the name") else _no_name(text, str(error)) from None
    if format_name(name) != text:
        raise _no_name(text, f"it would be written {format_name(name)!r}")
    return name


def _parse_tags(text: str, tail: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    rest, _, last = tail.rpartition("_")
    if last == "merged":
        merged, tail = {"merge_policy": "requantized"}, rest
    elif last.startswith("merged"):
        policy = "base" if last.startswith("mergedbase") else None
        word = last.removeprefix(f"merged{policy or ''}")
        merged, tail = {"merged_dtype": DTYPE_OF_TAG.get(word, last), "merge_policy": policy}, rest
    if not tail:
        return merged
    middle, _, head = tail.rpartition("_")
    fit = TAGS.fullmatch(middle)
    head_dtype = _head_dtype(head)
    if fit is None or not head.startswith("head") or head_dtype is None or fit[1] is None:
        raise _no_name(text, f"{tail!r} are no tags; w bits, g, a, kv, extras and head dtype come in this order")
    return {
        "weights_bits": int(fit[1]),
        "group_size": -1 if fit[3] else None if fit[2] is None else int(fit[2]),
        "activations_bits": None if fit[4] is None else int(fit[4]),
        "kv_cache_bits": None if fit[5] is None else int(fit[5]),
        "tags": tuple(word for word in fit[6].split("_") if word),
        "lm_head_dtype": head_dtype,
        **merged,
    }


def base_name(source: str | Path) -> str:
    """Return the base part of a name: the last component of a hub id or path, made to fit.

    Characters other than letters, digits, `.`, `_` and `-` become `-`, runs of `-` or `.` become one, and the ends are
    trimmed to a letter or digit. A folder of the Hugging Face cache gives the repository's name.

    Raises:
        UsageError: nothing is left.

    >>> base_name("HuggingFaceTB/SmolLM2-135M-Instruct")
    'SmolLM2-135M-Instruct'
    """
    path = Path(source)
    parts = path.parts if path.name not in ("", ".", "..") else path.resolve().parts
    cached = [part for part in parts if part.startswith("models--")]
    last = cached[-1].rpartition("--")[2] if cached and "snapshots" in parts else parts[-1] if parts else ""
    kept = re.sub(r"\.{2,}", ".", re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._-]", "-", last))).strip("-._")
    if not BASE.fullmatch(kept):
        raise UsageError(f"{str(source)!r} gives no name for the base; rename the folder to letters, digits, '.', '_', '-'")
    return kept


def _recipe_fields(recipe: QuantizationSpec, first_tags: tuple[str, ...], named: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "method": recipe.method,
        "weights_bits": recipe.weights_bits,
        "group_size": recipe.group_size,
        "activations_bits": recipe.activations_bits,
        "kv_cache_bits": recipe.kv_cache_bits,
        "tags": (*first_tags, *recipe.tags, *setting_tags(named or {})),
        "lm_head_dtype": recipe.lm_head_dtype,
    }


def _dtype_tag(dtype: str) -> str | None:
    return HEAD_TAG.get(dtype) or (dtype if HEAD_GRIDS.fullmatch(dtype) else None)


def _head_dtype(tag: str) -> str | None:
    word = tag.removeprefix("head")
    return DTYPE_OF_TAG.get(word) or (word if HEAD_GRIDS.fullmatch(word) else None)


def _require(holds: bool, field: str, value: object, wanted: str) -> None:
    if not holds:
        raise UsageError(f"{field} of an artifact's name is {str(value)[:80]!r}; it must be {wanted}")


def _no_name(text: str, reason: str) -> UsageError:
    return UsageError(f"the name {text!r} does not fit {{base}}-{{dataset}}_{{SFT}}_{{adapter}}_{{METHOD}}_{{tags}}: {reason}")
