"""Is there anything wrong with the rows as token ids? What is cut, how rows begin, and what this model has no place for."""

from collections.abc import Iterator
from statistics import median

from quantkit.data.packing import packs
from quantkit.layout import counted
from quantkit.preflight.finding import Finding, Severity, of_all
from quantkit.preflight.look import Look, place, texts_of

LONG_ENOUGH = 200
"""Characters of a row below which the template's own tokens decide how many there are per character."""
FEWEST_ROWS = 10
FAR = 3.0
"""Times the median tokens per character from which a row is unlike the others."""
DENSE = 0.5
"""Tokens per character below which a row is never remarkable."""


def cut(look: Look) -> Iterator[Finding]:
    """Rows that are longer than `max_length`, and whether any end is left to learn."""
    for label, part in look.sets:
        lengths, limit = part.encoded.lengths, look.config.max_length
        longer = [index for index, length in enumerate(lengths) if length > limit]
        if not longer:
            continue
        stops = look.chat.stop_token_ids
        ending = sum(row.labels[-1] in stops for row in part.encoded.rows)
        plain = part.conversations[longer[0]].text is not None
        p99 = sorted(lengths)[(99 * len(lengths) - 1) // 100]
        found = f"{label}{of_all(len(longer), len(lengths))} are longer than max_length={limit} and lose"
        found += " what follows" if plain else " the end of their response"
        advice = f"max_length={max(lengths)} cuts none"
        advice += f", {p99} cuts 1%" if p99 > limit else ""
        if not ending and not label:
            found += "; no row is left with an end token, so the model never learns to stop"
        else:
            found += f"; first {place(part, longer[0])}"
        yield Finding("error" if not ending and not plain and not label else "warning", "cut rows", found, advice)


def begin(look: Look) -> Iterator[Finding]:
    """Rows without the begin token that the tokenizer itself puts before text."""
    if not look.chat.bos:
        return
    bos = look.tokenizer.bos_token_id
    without = [index for index, row in enumerate(look.train.encoded.rows) if row.input_ids[0] != bos]
    if without:
        found = f"{of_all(len(without), len(look.train.encoded.rows))} do not begin with {look.chat.bos!r}, which the tokenizer"
        advice = "add {{ bos_token }} to the chat template, if the model was trained with it"
        yield Finding(
            "warning", "begin token", f"{found} puts before plain text; first {place(look.train, without[0])}", advice
        )


def unknown(look: Look) -> Iterator[Finding]:
    """Text the tokenizer has no token for at all."""
    unk, tokenizer = look.tokenizer.unk_token_id, look.tokenizer
    if unk is None or unk in look.chat.stop_token_ids or unk in (tokenizer.bos_token_id, tokenizer.pad_token_id):
        return
    for label, part in look.sets:
        counts = [row.input_ids.count(unk) for row in part.encoded.rows]
        if not any(counts):
            continue
        total = sum(len(row.input_ids) for row in part.encoded.rows)
        first = next(index for index, count in enumerate(counts) if count)
        found = f"{label}{of_all(sum(counts), total, 'tokens')} are {tokenizer.unk_token!r}, the unknown token; first"
        advice = "the tokenizer cannot write this text; choose a model whose tokenizer can"
        yield Finding(
            "error" if 2 * sum(counts) > total else "warning", "unknown text", f"{found} {place(part, first)}", advice
        )


def dense(look: Look) -> Iterator[Finding]:
    """Rows that take far more tokens per character than the others."""
    part = look.train
    rates = {}
    for index, length in enumerate(part.encoded.lengths):
        characters = sum(map(len, texts_of(part, index)))
        if characters >= LONG_ENOUGH:
            rates[index] = length / characters
    if len(rates) < FEWEST_ROWS:
        return
    usual = median(rates.values())
    far = [index for index, rate in rates.items() if rate > max(FAR * usual, DENSE)]
    if far:
        found = (
            f"{of_all(len(far), len(rates), 'longer rows')} take over {FAR:g} times as many tokens per character as the median"
        )
        found += f" ({usual:.2f}); first {place(part, far[0])} with {rates[far[0]]:.2f}"
        yield Finding(
            "warning", "tokens per character", found, "another writing system, or text that is no language; look at it"
        )


def vocabulary(look: Look) -> Iterator[Finding]:
    """Token ids beyond the model's embedding."""
    size = look.model.vocab_size
    for label, part in look.sets:
        beyond = [index for index, row in enumerate(part.encoded.rows) if size is not None and max(row.input_ids) >= size]
        if beyond:
            number = max(part.encoded.rows[beyond[0]].input_ids)
            token = look.tokenizer.convert_ids_to_tokens(number)
            found = (
                f"{label}{of_all(len(beyond), len(part.encoded.rows))} hold tokens the model has no embedding for: {token!r} is"
            )
            found += f" number {number}, the model has {size:,}; first {place(part, beyond[0])}"
            yield Finding("error", "vocabulary", found, "use the model's own tokenizer")


def positions(look: Look) -> Iterator[Finding]:
    """Rows longer than the model was made for."""
    limit = look.model.positions
    for label, part in look.sets:
        longer = [index for index, row in enumerate(part.encoded.rows) if limit is not None and len(row.input_ids) > limit]
        if longer:
            found = f"{label}{of_all(len(longer), len(part.encoded.rows))} are longer than the {limit:,} positions of the model"
            found += "; it has no embedding for later ones" if look.model.learnt_positions else ""
            severity: Severity = "error" if look.model.learnt_positions else "warning"
            yield Finding(severity, "positions", f"{found}; first {place(part, longer[0])}", f"set max_length={limit} or less")


def packed(look: Look) -> Iterator[Finding]:
    """What packing makes of the rows."""
    if not look.config.packing or not look.train.encoded.rows:
        return
    lengths = [len(row.input_ids) for row in look.train.encoded.rows]
    made = packs(lengths, look.config.max_length)
    full = sum(lengths) / (len(made) * look.config.max_length)
    batch = look.config.per_device_train_batch_size * look.config.gradient_accumulation_steps
    found = f"{counted(len(lengths), 'row')} make {counted(len(made), 'pack')} of up to {look.config.max_length:,} tokens,"
    found += f" {full:.0%} full: about {counted(max(1, -(-len(made) // batch)), 'step')} of {counted(batch, 'pack')} per epoch"
    advice = "rows stay whole and see themselves only; this is tried on the model once it is loaded, and packing is off if not"
    yield Finding("note", "packing", found, advice)


CHECKS = (cut, begin, unknown, dense, vocabulary, positions, packed)
