"""Is there anything behind the number: did the model speak, end, vary, and were all answers counted?"""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence

from quantkit.audit.derived import coverage_of, empty_share, normalised, says_nothing, tokens_per_answer
from quantkit.audit.facts import Finding, Measured, Severity
from quantkit.evaluation.degeneration import is_repetitive
from quantkit.evaluation.results import FEW_LABELS

MOST, SOME = 0.5, 0.2
"""Shares of answers: from the first on a number cannot stand, from the second on it cannot be judged."""
LOW_COVERAGE = 0.9
CONSTANT = 0.9
FAR = 5
"""How many times shorter an answer or a latency must be to stand out."""
FEWEST = 10
MEANINGS = {
    "ECHO": "answers repeat the question",
    "GIBBERISH": "answers are what the model it came from finds nearly impossible",
    "BROKEN": "its perplexity is no better than the size of the vocabulary, which is chance",
}
LOOKED_FOR = ("EMPTY", "LOOPS", "NO STOP", "CONSTANT")
"""Marks whose reasons are checked here."""
"""Rows below which nothing is said about how answers vary."""


def silent(measured: Measured) -> Iterator[Finding]:
    """Find models that say nothing, and what is reported of them all the same."""
    share = empty_share(measured)
    if share is None or not share >= SOME:
        return
    counted = round(share * (len(measured.rows) or measured.n or 0))
    of = len(measured.rows) or measured.n
    said = f"{counted} of {of} answers say nothing" if of else f"{share:.0%} of the answers say nothing"
    if share < MOST:
        yield measured.finding("warning", "silent", "answers", said, "the raw answers read: are they cut, filtered or empty?")
        return
    needed = "the training data's answers and the chat template checked: a model trained on empty answers learns silence"
    yield measured.finding("error", "silent", "answers", said, needed)
    for number in measured.numbers:
        if number.kind == "difference" and number.main:
            text = f"{number.shown} is the mean over what little was said; {said}"
            yield measured.finding(
                "error", "conditional mean", number.where, text, "a score over all rows, silence counted as wrong"
            )
    if measured.latency_s is not None:
        text = f"{measured.latency_s:.3g} s are the latency of silence; {said}"
        yield measured.finding("error", "silent", "latency", text, "seconds per token, of answers of equal length")


def silent_speed(group: Sequence[Measured]) -> Iterator[Finding]:
    """Find latencies that are low because little was said; the group is one task of one file."""
    known = [(item, tokens_per_answer(item)) for item in group if item.latency_s]
    lengths = [tokens for _, tokens in known if tokens]
    if len(lengths) < 2:
        return
    usual = statistics.median(lengths)
    for item, tokens in known:
        if tokens is not None and tokens < usual / FAR and not (empty_share(item) or 0) >= MOST:
            said = f"latency {item.latency_s:.3g} s for {tokens:.3g} tokens an answer; the others write {usual:.3g}"
            yield item.finding("warning", "short answers", "latency", said, "seconds per token, of answers of equal length")


def silent_leader(group: Sequence[Measured]) -> Iterator[Finding]:
    """Find tables that a silent model leads; the group is one task of one file."""
    for item in group:
        if not (empty_share(item) or 0.0) >= MOST:
            continue
        leads = []
        for number in item.numbers:
            others = [
                other.value for more in group if more is not item for other in more.numbers if other.where == number.where
            ]
            best = (max if number.higher_is_better else min)(others, default=None)
            if (
                best is not None
                and number.is_finite
                and (number.value > best if number.higher_is_better else number.value < best)
            ):
                leads.append(f"{number.name} ({number.shown}; the next has {best * (100 if number.percent else 1):.6g})")
        times = [more.latency_s for more in group if more is not item and more.latency_s]
        if item.latency_s and times and item.latency_s < min(times):
            leads.append(f"latency ({item.latency_s:.3g} s; the next takes {min(times):.3g} s)")
        if leads:
            said = f"leads the table by {' and by '.join(leads)}, and says nothing in {empty_share(item):.0%} of its answers"
            yield item.finding("error", "silent leader", "ranking", said, "the model left out of the ranking")


def unexplained_speed(group: Sequence[Measured]) -> Iterator[Finding]:
    """Find latencies far below the others' where nothing says how much was written; the group is one task of one file."""
    times = [item.latency_s for item in group if item.latency_s]
    if len(times) < 2:
        return
    for item in group:
        others = [other.latency_s for other in group if other is not item and other.latency_s]
        unknown = tokens_per_answer(item) is None and empty_share(item) is None
        if unknown and item.latency_s and others and item.latency_s < min(others) / FAR:
            said = f"latency {item.latency_s:.3g} s; the others take at least {min(others):.3g} s, and silence is fast"
            yield item.finding("warning", "short answers", "latency", said, "tokens per answer, and how many answers are empty")


def coverage(measured: Measured) -> Iterator[Finding]:
    """Find means over parsed answers that do not say, or should not hide, how many those were."""
    share = coverage_of(measured)
    for number in measured.numbers:
        if number.kind == "difference":
            yield from _conditional(measured, number.where, number.shown, share)
        elif number.kind == "perplexity" and number.coverage is not None and number.coverage < LOW_COVERAGE:
            said = f"{number.shown} covers {number.coverage:.0%} of the tokens"
            yield measured.finding(
                "warning", "low coverage", number.where, said, "texts that fit the context, or the rest counted"
            )
    main = measured.main
    if main is not None and main.kind == "share" and share is not None and share < MOST:
        said = f"{share:.0%} of the answers parsed: {main.value:.1%} says more about the format than about the answers"
        yield measured.finding(
            "warning", "low coverage", main.where, said, "raw answers read; a format the model was asked for"
        )


def _conditional(measured: Measured, where: str, shown: str, share: float | None) -> Iterator[Finding]:
    if share is None:
        if not (empty_share(measured) or 0.0) >= MOST:
            said = "a mean over the parsed answers, and how many parsed is not said"
            yield measured.finding("warning", "no coverage", where, said, "how many answers parsed, of how many")
    elif share < LOW_COVERAGE and not (empty_share(measured) or 0.0) >= MOST:
        said = f"{shown} is a mean over {share:.0%} of the answers; the rest did not parse and was left out"
        yield measured.finding(
            "error", "conditional mean", where, said, "a score over all rows, unparsed answers counted as wrong"
        )


def degenerate(measured: Measured) -> Iterator[Finding]:
    """Find answers that never end, loop, or are all the same."""
    for share, said, check in _degrees(measured):
        if share >= SOME:
            level: Severity = "error" if share >= MOST else "warning"
            yield measured.finding(
                level, check, "answers", f"{share:.0%} {said}", "the raw answers read; not a number to rank by"
            )
    rows = [row for row in measured.rows if row.text is not None or row.answer is not None]
    if len(rows) < FEWEST or len(rows) != len(measured.rows):
        return
    texts = Counter(normalised(row.answer if row.answer is not None else row.text or "") for row in rows)
    text, times = texts.most_common(1)[0]
    golds = Counter(row.gold for row in rows if row.gold is not None)
    usual = golds.most_common(1)[0][1] / len(rows) if golds else 0.0
    if text and times / len(rows) >= CONSTANT > usual + SOME:
        said = f"{times} of {len(rows)} answers are {text[:30]!r}, whatever is asked"
        severity: Severity = "warning" if len(golds) <= FEW_LABELS else "error"
        yield measured.finding(severity, "constant answers", "answers", said, "a model that reads the question")


def marked(measured: Measured) -> Iterator[Finding]:
    """Pass on what quantkit found wrong with the answers and no check here looks for."""
    for mark in measured.marks:
        if mark not in LOOKED_FOR:
            said = f"the scores earn the mark {mark}: {MEANINGS.get(mark, 'the answers are degenerate')}"
            yield measured.finding("error", "marked", "answers", said, "the raw answers read; not a number to rank by")


def _degrees(measured: Measured) -> Iterator[tuple[float, str, str]]:
    rows = measured.rows
    limit = measured.settings.get("max_new_tokens", "")
    ended = [row.stopped for row in rows if row.stopped is not None]
    lengths = [row.tokens for row in rows if row.tokens is not None]
    if ended:
        yield 1 - sum(ended) / len(ended), "of the answers never stop: max_new_tokens cut them", "cut answers"
    elif measured.stopped is not None:
        yield 1 - measured.stopped, "of the answers never stop: max_new_tokens cut them", "cut answers"
    elif limit.isdigit() and lengths:
        cut = sum(length >= int(limit) for length in lengths) / len(lengths)
        yield cut, f"of the answers are {limit} tokens long, which is max_new_tokens: they were cut", "cut answers"
    elif limit.isdigit() and (mean := tokens_per_answer(measured)) is not None and mean >= 0.98 * int(limit):
        yield 1.0, f"of the answers, or nearly, are as long as max_new_tokens ({limit}) allows: they were cut", "cut answers"
    spoken = [row.text for row in rows if row.text is not None and not says_nothing(row)]
    if spoken and measured.source != "quantkit":
        loops = sum(_loops(text) for text in spoken) / len(rows)
        yield loops, "of the answers repeat themselves", "repetition"
    elif measured.repetition is not None:
        yield measured.repetition, "of the answers repeat themselves", "repetition"


def _loops(text: str) -> bool:
    """Whether the words, or the characters of one long word, are one piece over and over."""
    words: dict[str, int] = {}
    numbers = [words.setdefault(word, len(words)) for word in text[:20_000].split()]
    return is_repetitive(numbers) or (len(numbers) < 3 and is_repetitive([ord(letter) for letter in text[:2_000]]))
