"""Which writing systems of the rows does the tokenizer not know? Asked of each letter that occurs, not guessed from its name.

A letter without a token of its own is spelled in bytes: two to four tokens for what should be one or less. Rows in such a
script train, slowly, on something the model has hardly seen. Tokens per character of whole rows, the alternative, mix this up
with digits, code and the template's own tokens.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterator

from quantkit.preflight.finding import Finding
from quantkit.preflight.look import Look, texts_of

LEAST_SHARE = 0.01
"""Share of all letters below which a script is a few foreign words."""
MOSTLY = 0.5
CARRIER = "a"
"""Letter before the one that is asked about: some tokenizers put a token of their own before the first letter of a text."""


def unknown_scripts(look: Look) -> Iterator[Finding]:
    """Scripts most of whose letters are spelled in bytes, or unknown."""
    counts: Counter[str] = Counter()
    for index in range(len(look.train.conversations)):
        for text in texts_of(look.train, index):
            counts.update(text)
    letters = {letter: count for letter, count in counts.items() if unicodedata.category(letter)[0] in "LM"}
    foreign = [letter for letter in letters if not letter.isascii()]
    cost = _tokens_each(look, foreign)
    total = sum(letters.values())
    by_script: dict[str, list[str]] = {}
    for letter in foreign:
        by_script.setdefault(unicodedata.name(letter, "unnamed").split()[0].split("-")[0], []).append(letter)
    for script, members in sorted(by_script.items()):
        seen = sum(letters[letter] for letter in members)
        spelled = [letter for letter in members if cost[letter] > 1]
        share = sum(letters[letter] for letter in spelled) / seen
        if seen < LEAST_SHARE * total or share < MOSTLY:
            continue
        each = sum(letters[letter] * cost[letter] for letter in spelled) / sum(letters[letter] for letter in spelled)
        found = f"{share:.0%} of the {_named(script)} ({seen / total:.0%} of all letters) have no token of their own"
        found += f" and are spelled in {each:.1f} tokens each, e.g. {' '.join(spelled[:5])}"
        advice = "the model hardly knows this script; choose one whose tokenizer does, or expect long rows and slow learning"
        yield Finding("warning", "writing system", found, advice)


def _named(script: str) -> str:
    """Return what letters of a script are called, of which ASCII's were not asked about."""
    return (
        "Latin letters beyond a to z" if script == "LATIN" else f"{script if script == 'CJK' else script.capitalize()} letters"
    )


def _tokens_each(look: Look, letters: list[str]) -> dict[str, int]:
    """Return how many tokens each letter takes."""
    if not letters:
        return {}
    texts = [CARRIER, *(CARRIER + letter for letter in letters)]
    alone, *together = look.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return {letter: len(ids) - len(alone) for letter, ids in zip(letters, together, strict=True)}


CHECKS = (unknown_scripts,)
