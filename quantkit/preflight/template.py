"""What would a chat template do to these rows in hands that trust it, and what is done about it here?

Stock templates of several families have no `{% generation %}` marks, so the assistant mask of a trainer that asks the
tokenizer for one is all zero; some render content that is no string as nothing. Here answers are found by rendering each row
up to them, and values become text before any template sees them, so both are repaired and said.
"""

import re
from collections.abc import Iterator
from typing import Any

from quantkit.data.findings import RowError, shown
from quantkit.preflight.finding import Finding
from quantkit.preflight.look import Look

MARKS = re.compile(r"{%-?\s*generation\b")
SYSTEM_MOVED = "system turns moved to the front"
NUMBERS = "numbers converted"
PROBE = 1008.0


def conversions(look: Look) -> Iterator[Finding]:
    """Values that were no text, system turns that stood later, and other repairs of rows."""
    told: set[tuple[str, str]] = set()
    for label, part in look.sets:
        for line, (column, what) in zip(part.findings.conversion_lines(), part.findings.conversions, strict=True):
            if (column, what) in told:
                continue
            told.add((column, what))
            if what == NUMBERS:
                advice = "the number stands in the text that is learnt"
                yield Finding("repaired", "conversions", f"{label}{line}; {_of_number(look)}", advice)
            elif what == SYSTEM_MOVED:
                advice = "the system turn stands first, where templates look for it"
                yield Finding("repaired", "order of turns", f"{label}{line}", advice)
            else:
                yield Finding("repaired", "conversions", f"{label}{line}")


def _of_number(look: Look) -> str:
    """Say what this chat template makes of an answer that is a float."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE}]
    try:
        text = look.chat.render(turns)
    except RowError:
        return "the chat template fails on numbers"
    if str(PROBE) in text:
        return f"the chat template would have written {str(PROBE)!r} for {int(PROBE)}"
    return "the chat template would have written nothing for a number, so that the model learns to say nothing"


def masks(look: Look) -> Iterator[Finding]:
    """Templates that do not mark answers, and earlier answers that they rewrite."""
    if any(item.text is None for item in look.train.conversations) and not MARKS.search(look.chat.template):
        found = "the chat template does not mark answers ({% generation %}), so a mask that is asked of it is all zero"
        yield Finding("repaired", "assistant mask", found, "answers are found by rendering each row up to them, and read back")
    for label, part in look.sets:
        if part.encoded.unlearnt:
            found = (
                f"{label}{part.encoded.unlearnt:,} earlier answers are not learnt: the template rewrites them in longer rows"
            )
            yield Finding("warning", "assistant mask", found, "write each answer as a row of its own if all are to be learnt")


def notes(look: Look) -> Iterator[Finding]:
    """What the data room noticed about the template itself."""
    for note in look.chat.notes:
        yield Finding("repaired" if "does not stop" in note else "note", "chat template", note)
    system = next(
        (i.messages[0]["content"] for i in look.train.conversations if i.messages and _is_system(i.messages[0])), None
    )
    if look.chat.folds_system and system is not None:
        found = f"the chat template has no system role; the system text {shown(system, 40)} would be lost or refused"
        yield Finding("repaired", "chat template", found, "it stands at the top of the first user turn")


def _is_system(turn: dict[str, str]) -> bool:
    return turn["role"] == "system"


def padding(look: Look) -> Iterator[Finding]:
    """A pad token that is the end token, or none."""
    tokenizer = look.tokenizer
    if tokenizer.pad_token_id in look.chat.stop_token_ids:
        found = f"the pad token is an end token ({tokenizer.pad_token!r}); hiding it from the loss would hide every end"
        yield Finding("repaired", "padding", found, "labels come from the rows, not from ids: ends are learnt, padding is not")
    elif tokenizer.pad_token_id is None:
        found = "the tokenizer has no pad token"
        yield Finding("repaired", "padding", found, f"{tokenizer.eos_token!r} fills batches; it is masked and not learnt there")


CHECKS = (conversions, masks, notes, padding)
