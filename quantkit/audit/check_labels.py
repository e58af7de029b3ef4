"""Are the weights what the file says they are?

A name is words. It is compared with what the file records, with the memory the run took and with the bits that were measured;
where they disagree, the numbers belong to nobody.
"""

from collections.abc import Iterator, Mapping, Sequence

from quantkit.audit.derived import parameters_of
from quantkit.audit.facts import Claim, Finding, Measured, Number, Severity, listed
from quantkit.layout import format_bytes

Claims = Mapping[str, Claim]
SAME_SIZE = 0.85
"""Share of a 16-bit run's memory from which on a quantized run is as large."""
ROOMY = 8 << 30
"""Bytes of 16-bit weights above which a peak over them cannot be the activations of a small batch."""
MEASURE = "the stored weights measured (quantkit registry detect PATH), and evaluated as what they are"
WORSE = 1.5
"""Factor of perplexity that no merge costs."""


def label(measured: Measured, claims: Claims) -> Iterator[Finding]:
    """Find names and records that contradict each other."""
    claim = claims.get(measured.model)
    if claim is None or measured.old_schema is not None:
        return
    severity: Severity = "error" if claim.strict else "warning"
    recorded = measured.method or (None if measured.bits is None else f"{measured.bits} bits")
    if claim.ambiguous and measured.quantized is False:
        said = (
            f"the name says {claim.text}, the record {recorded}: what a substring test with the unquantized method first gives"
        )
        yield measured.finding("error", "label", "method", said, MEASURE)
    elif (
        measured.quantized is not None
        and measured.quantized != claim.quantized
        and (claim.quantized or not _by_tensors(measured))
    ):
        said = f"the name says {claim.text}, the record {recorded}"
        yield measured.finding(severity, "label", "method", said, MEASURE)
    elif claim.quantized and measured.quantized and None not in (claim.bits, measured.bits) and claim.bits != measured.bits:
        said = f"the name says {claim.text}, the record {measured.bits} bits"
        yield measured.finding(severity, "label", "weights_bits", said, MEASURE)
    elif claim.strict and claim.quantized and claim.method and measured.quantized and _differ(claim.method, measured.method):
        said = f"the name says {claim.text}, the record {measured.method}"
        yield measured.finding("error", "label", "method", said, MEASURE)
    if measured.base is not None and claim.quantized and measured.quantized is None and measured.base not in claims:
        said = f"the adapter's name says {claim.text}; its base {measured.base} was loaded without load_in_4bit or load_in_8bit"
        needed = "the adapter judged on the quantized base it was trained on"
        yield measured.finding("warning", "label", "model_args", said, needed)


def _by_tensors(measured: Measured) -> bool:
    """Whether what is recorded was measured at loading: a 16-bit model may have been quantized then, by request."""
    return measured.source == "quantkit"


def _differ(claimed: str, recorded: str | None) -> bool:
    return recorded is not None and not recorded.startswith("load_in") and claimed.lower() != recorded.lower()


def measured_bits(measured: Measured) -> Iterator[Finding]:
    """Find weights whose measured bits are not those of their record."""
    found = measured.bits_per_weight
    if found is None or not 0 < found < 1000:
        return
    bits = measured.bits
    if measured.quantized and bits is not None and (found >= 15.5 or found < 0.9 * bits):
        said = f"{bits}-bit weights are recorded, {found:.2f} bits per weight were measured"
        yield measured.finding("error", "label", "bits_per_weight", said, MEASURE)
    if measured.quantized is False and found < 15:
        said = f"unquantized weights are recorded, {found:.2f} bits per weight were measured"
        yield measured.finding("error", "label", "bits_per_weight", said, MEASURE)


def all_unquantized(group: Sequence[Measured], claims: Claims) -> Iterator[Finding]:
    """Find files in which several models with a quantized name are recorded as unquantized."""
    named = {item.model: item for item in group if item.model in claims and claims[item.model].quantized}
    total = len(named)
    named = {model: item for model, item in named.items() if item.quantized is False}
    if len(named) < 2:
        return
    first = next(iter(named.values()))
    said = (
        f"{len(named)} of {total} models with a quantized name are recorded as {first.method or 'unquantized'}: metadata, or a"
        " substring test with the unquantized method first, was believed before the weights"
    )
    yield Finding(
        severity="error",
        check="labelled unquantized",
        file=first.file,
        model=listed(named),
        where="method",
        found=said,
        needed=MEASURE,
    )


def memory(group: Sequence[Measured], claims: Claims) -> Iterator[Finding]:
    """Find runs said to be quantized that took the memory of 16-bit weights; the group is one task of one file."""
    dense = [item for item in group if item.memory_bytes and not _said_bits(item, claims)]
    for item in group:
        bits, peak = _said_bits(item, claims), item.memory_bytes
        if not bits or bits > 8 or not peak or item.source == "quantkit":
            continue
        size = parameters_of(item)
        like = [other for other in dense if other.memory_bytes and parameters_of(other) == size and _alike(item, other)]
        needed = f"the run's log read for a request for {bits} bits that was ignored; the weights in memory measured"
        if like and size is not None:
            other = max(like, key=lambda found: found.memory_bytes or 0)
            if other.memory_bytes and SAME_SIZE * other.memory_bytes <= peak and _weighs(size, peak):
                said = f"{format_bytes(int(peak))} for {bits}-bit weights; the 16-bit {other.model} took"
                said += f" {format_bytes(int(other.memory_bytes))}"
                yield item.finding("error", "memory", "peak memory", said, needed)
                continue
        if size is not None and peak >= 2 * size and size >= 1e9:
            severity: Severity = "error" if 2 * size >= ROOMY else "warning"
            said = f"{format_bytes(int(peak))} for {bits}-bit weights of {size / 1e9:.3g} B parameters, which take"
            said += f" {format_bytes(int(size * bits / 8))}; in 16 bits they take {format_bytes(int(2 * size))}"
            yield item.finding(severity, "memory", "peak memory", said, needed)


def _weighs(size: float, peak: float) -> bool:
    """Whether weights are enough of a peak for it to tell their width: 16-bit ones would be half of it."""
    return 2 * size >= 0.5 * peak


def _alike(one: Measured, other: Measured) -> bool:
    return all(one.settings.get(name) == other.settings.get(name) for name in ("batch_size", "max_new_tokens"))


def _said_bits(item: Measured, claims: Claims) -> int | None:
    """Return the width under 16 bits that a file or a name says, None where neither does."""
    if item.quantized and item.bits is not None and item.bits < 16:
        return item.bits
    claim = claims.get(item.model)
    return claim.bits if claim is not None and claim.quantized and item.quantized is not False else None


def _means_something(number: Number) -> bool:
    """Whether a perplexity is finite and better than its floors: worse ones move with every rounding."""
    return number.is_finite and all(number.value < floor.value for floor in number.floors)


def merges(group: Sequence[Measured], claims: Claims) -> Iterator[Finding]:
    """Find merged models that are far worse than the adapter they were merged from; the group is one task."""
    by_name = {item.model: item for item in group}
    for item in group:
        claim = claims.get(item.model)
        source = by_name.get(claim.unmerged or "") if claim else None
        if source is None or source.fingerprint != item.fingerprint:
            continue
        before = {number.where: number for number in source.numbers if number.kind == "perplexity" and _means_something(number)}
        for number in item.numbers:
            other = before.get(number.where)
            if other is not None and number.is_finite and number.value > WORSE * other.value:
                said = f"perplexity {number.shown}; before the merge it was {other.shown} ({source.model})"
                needed = "the merge made again from unpacked weights, and its logits compared with the adapter's"
                yield item.finding("error", "broken merge", number.where, said, needed)
