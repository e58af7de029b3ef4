"""Is there anything wrong with what the rows say, whatever the model?

Rows that cannot be used, rows said twice, evaluation rows that are trained on, answers that are all one or not what a built-in
data set asks for, turns out of order, tokens of the tokenizer written out in text. Two questions are the same when they differ
in case and spaces only, and nearly the same when they differ in punctuation too; numbers and signs are kept: 3+4 is not 3-4.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from quantkit.data.findings import CUT_OFF, normalised, shown
from quantkit.data.fit import RULES, judged
from quantkit.data.prepare import ReadSet
from quantkit.data.schemas import Conversation
from quantkit.preflight.finding import Finding, of_all
from quantkit.preflight.look import Look, place, texts_of, without_folders

PUNCTUATION = re.compile(r"[\s\"'“”‘’´`?;…()\[\]–—]+|[.,:!](?!\d)")
FEWEST_ANSWERS = 10
"""Answers below which it means nothing that all are the same."""
NEARLY_ALL = 0.9
MANY_UNLIKE = 0.1
"""Share of answers that a data set does not ask for beyond which its name may be the wrong one."""


def loose(text: str) -> str:
    """Return the text without case, punctuation and spelling variants of letters.

    >>> loose("What is 3.5 – 1?") == loose("what is 3.5 1"), loose("3+4") == loose("3-4")
    (True, False)
    """
    return normalised(PUNCTUATION.sub(" ", unicodedata.normalize("NFKC", text)))


def unusable(look: Look) -> Iterator[Finding]:
    """Rows that cannot be learnt from, by reason."""
    drops = look.config.on_bad_rows == "drop"
    for label, part in look.sets:
        total = len(part.rows.rows)
        for reason, count in part.findings.dropped.items():
            found = f"{label}{of_all(count, total)} cannot be learnt from: {reason}; first"
            found += f" {without_folders(part.findings.first_of[reason][1], part)}"
            mend = "raise max_length" if reason == CUT_OFF else "correct them"
            advice = "such rows are left out" if drops else f"{mend}, or leave them out with on_bad_rows=drop"
            yield Finding("warning" if drops else "error", "unusable rows", found, advice)
        if not part.encoded.rows:
            yield Finding("error", "unusable rows", f"{label}none of {total:,} rows can be used", "correct the data")


def repeated(look: Look) -> Iterator[Finding]:
    """Rows that say what an earlier row says, and questions with several answers."""
    for label, part in look.sets:
        exact, near = _earlier(part, normalised), _earlier(part, loose)
        if near:
            second, first = min(near.items())
            more = len(near) - len(exact)
            found = f"{label}{of_all(len(exact), len(part.conversations))} repeat an earlier one"
            found += f", {more:,} more but for punctuation" if more else ""
            found += f"; first {place(part, second)} repeats {place(part, first)}"
            yield Finding("warning", "repeated rows", found, "remove them, unless they are to count more than others")
        answers: dict[str, set[str]] = {}
        for item in part.conversations:
            if item.text is None:
                question = "\0".join(loose(turn["content"]) for turn in item.prompt)
                answers.setdefault(question, set()).add(loose(item.response))
        several = [question for question, given in answers.items() if len(given) > 1]
        if several:
            found = f"{label}{of_all(len(several), len(answers), 'questions')} have several different answers"
            yield Finding("note", "repeated rows", f"{found}; first {shown(several[0].split(chr(0))[-1])}")


def _earlier(part: ReadSet, form: Callable[[str], str]) -> dict[int, int]:
    """Return row → earlier row that is the same in this form."""
    first: dict[tuple[str, ...], int] = {}
    found = {}
    for index in range(len(part.conversations)):
        key = tuple(form(text) for text in texts_of(part, index))
        if key in first:
            found[index] = first[key]
        first.setdefault(key, index)
    return found


def overlapping(look: Look) -> Iterator[Finding]:
    """Evaluation questions that are trained on."""
    evaluation = look.read.evaluation
    if evaluation is None:
        return
    exact, near = set(look.train.keys), {loose(key) for key in look.train.keys}
    same = [index for index, key in enumerate(evaluation.keys) if key in exact]
    alike = [index for index, key in enumerate(evaluation.keys) if loose(key) in near]
    if alike:
        total = len(evaluation.conversations)
        found = f"{of_all(len(same), total, 'evaluation questions')} also stand in the training set"
        found += f", {len(alike) - len(same):,} more but for punctuation" if len(alike) > len(same) else ""
        advice = "remove them from one of both; until then the evaluation will look better than it is"
        yield Finding("warning", "overlap", f"{found}; first {place(evaluation, alike[0])}", advice)


def one_answer(look: Look) -> Iterator[Finding]:
    """Answers that are (nearly) all the same."""
    answers = Counter(normalised(item.response) for item in look.train.conversations if item.text is None)
    total = answers.total()
    if total < FEWEST_ANSWERS:
        return
    (answer, count) = answers.most_common(1)[0]
    if count >= NEARLY_ALL * total:
        found = f"{of_all(count, total, 'answers')} are {shown(answer)}"
        advice = "a model learns to say this whatever it is asked; look for the column that holds the answers"
        yield Finding("error" if count == total else "warning", "one answer", found, advice)


def unlike_task(look: Look) -> Iterator[Finding]:
    """Answers that are hardly what the built-in data set asks for, where they are too few or too like to be refused."""
    for label, part in look.sets:
        if part.ref.task is None:
            continue
        name, columns = part.ref.task.name, {column for row in part.rows.rows for column in row}
        fits = [fit == "fits" for _, fit in judged(part.ref.task, part.conversations, columns)]
        if fits.count(False) > MANY_UNLIKE * len(fits):
            first = fits.index(False)
            found = f"{label}{of_all(fits.count(False), len(fits), 'answers')} are hardly what {name} asks for"
            found += f" ({RULES[name][0]}); first {place(part, first)}: {shown(part.conversations[first].response)}"
            yield Finding("warning", "task", found, f"if these rows are no {name} rows, leave the name before the file out")


def turns(look: Look) -> Iterator[Finding]:
    """Turns that follow one of the same role, and questions after the last answer."""
    for label, part in look.sets:
        total = len(part.conversations)
        twice = [index for index, item in enumerate(part.conversations) if _same_role_twice(item)]
        if twice:
            found = f"{label}{of_all(len(twice), total)} have two turns of one role in a row; first {place(part, twice[0])}"
            yield Finding("warning", "order of turns", found, "put them together into one turn, as the model will be asked")
        open_end = [index for index, item in enumerate(part.conversations) if len(item.messages) > item.last_response + 1]
        if open_end:
            found = f"{label}{of_all(len(open_end), total)} end in a turn that nobody answers; first {place(part, open_end[0])}"
            yield Finding("warning", "order of turns", found, "nothing after the last answer is learnt or read")


def _same_role_twice(item: Conversation) -> bool:
    return any(one["role"] == other["role"] for one, other in pairwise(item.messages))


def written_tokens(look: Look) -> Iterator[Finding]:
    """Special tokens written out in text; those that part turns are refused in turns, and in plain text a sign of it."""
    for label, part in look.sets:
        rendered = [
            index
            for index, item in enumerate(part.conversations)
            if item.text is not None and look.chat.control_token_in(_inner(item.text, look))
        ]
        if rendered:
            found = f"{label}{of_all(len(rendered), len(part.conversations))} of plain text hold tokens of the chat template;"
            advice = "questions are learnt like answers there; give messages, so that answers alone are"
            yield Finding("warning", "written tokens", f"{found} first {place(part, rendered[0])}", advice)
        other = _written(look, part)
        if other:
            words = ", ".join(f"{token} in {count:,}" for token, count in Counter(token for token, _ in other).most_common(3))
            found = f"{label}special tokens are written out in rows: {words}; first {place(part, other[0][1])}"
            yield Finding("warning", "written tokens", found, "the model reads them as tokens, not as text; remove them")


def _written(look: Look, part: ReadSet) -> Sequence[tuple[str, int]]:
    found = []
    for index in range(len(part.conversations)):
        text = "\0".join(texts_of(part, index))
        present = [token for token in look.chat.special_tokens if token in text]
        found += [(token, index) for token in present if not look.chat.control_token_in(token)]
    return found


def _inner(text: str, look: Look) -> str:
    """Return plain text without a begin token before it and an end token after it."""
    return text.strip().removeprefix(look.chat.bos).removesuffix(str(look.tokenizer.eos_token))


CHECKS = (unusable, repeated, overlapping, one_answer, unlike_task, turns, written_tokens)
