"""What does a model's name say about its weights? Words to compare with the records, never facts."""

import re
from collections.abc import Iterable

from quantkit.audit import Claim
from quantkit.errors import UsageError
from quantkit.spec import QuantMethod
from quantkit_registry.hints import hint_of
from quantkit_registry.names import ArtifactName, format_name, parse_name

UNQUANTIZED = QuantMethod.NO_QUANT.value
WORD = re.compile(r"[_/\s]+")
BITS_TAG = re.compile(r"w([1-9]\d?)")
BITS_SAID = re.compile(r"(\d)[- ]bits?\b")
MERGED = re.compile(r"merged[a-z0-9]*")


def claims_of(models: Iterable[str], methods: Iterable[str]) -> dict[str, Claim]:
    """Return model → what its name says, for those whose name says anything; `methods` are the words of methods."""
    known = {str(method) for method in (*QuantMethod, *methods)}
    found = {model: claim_of(model, known) for model in dict.fromkeys(models)}
    return {model: claim for model, claim in found.items() if claim is not None}


def claim_of(model: str, methods: set[str]) -> Claim | None:
    """Return what one name says: by the grammar of names, by its tags, or as a hint.

    >>> claim_of("Qwen3-0.6B-openmath_SFT_LoRa256_QLORA_w4_headbf16", {"QLORA"}).text
    'QLORA, 4 bits'
    >>> claim_of("Llama-3-8B-bnb-4bit", set()).strict, claim_of("Llama-3-8B", set())
    (False, None)
    """
    last = model.replace("\\", "/").rstrip("/").rpartition("/")[2]
    try:
        return _by_grammar(parse_name(last))
    except UsageError:
        return _by_tags(last, methods) or _by_hint(last)


def _by_grammar(name: ArtifactName) -> Claim:
    dense = name.method == UNQUANTIZED or name.merged_dtype is not None
    unmerged = format_name(name.merged(None)) if name.merged_dtype or name.merge_policy else None
    bits = None if name.merged_dtype else name.weights_bits
    width = f"merged to {name.merged_dtype}" if name.merged_dtype else f"{name.weights_bits} bits"
    return Claim(
        text=f"{name.method}, {width}",
        quantized=not dense,
        bits=bits,
        method=None if dense else name.method,
        unmerged=unmerged,
    )


def _by_tags(name: str, methods: set[str]) -> Claim | None:
    """Return what tags between underscores say; some of the names in use leave out the number of bits."""
    words = WORD.split(name)
    if len(words) < 2:
        return None
    dashed = {part for word in words for part in word.split("-")}
    said = [word for word in words if word in methods and word != UNQUANTIZED]
    tags = [int(found[1]) for word in words if (found := BITS_TAG.fullmatch(word))]
    bits = next((width for width in tags if width < 16), None)
    if not said and bits is None:
        return None
    text = ", ".join([*said[:1], *([f"{bits} bits"] if bits else [])])
    if MERGED.fullmatch(words[-1]):
        return Claim(text=f"{text}, merged", quantized=False)
    both = UNQUANTIZED in dashed
    return Claim(
        text=f"{text} and {UNQUANTIZED}" if both else text,
        quantized=True,
        bits=bits,
        method=said[0] if said else None,
        ambiguous=both,
    )


def _by_hint(name: str) -> Claim | None:
    hint = hint_of(name)
    if hint is None:
        return None
    text = hint.removeprefix("the name looks like ").removesuffix("; a hint only")
    bits = BITS_SAID.search(text)
    return Claim(text=text, quantized=True, bits=int(bits[1]) if bits else None, strict=False)
