"""Is this text language at all, when no model is there to say so?

Measured against the task's own questions and references, so that it holds for any language they are in: characters that are no
text, letters of scripts that the task does not use, and how many of the words are among its commonest. The commonest few
hundred words of a language are a third to a half of any text in it; of words drawn from a vocabulary at random they are a
hundredth. Likelihood under the model that wrote the text was the alternative and tells nothing: greedy decoding writes what is
likely to it. Words of the task itself in a random order pass here; only likelihood under another model tells those.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Self

COMMON_WORDS = 300
FEWEST_WORDS = 8
"""Shorter texts are judged by their characters only: a name, a label or a number has no common words."""
LEAST_COMMON = 0.1
"""Least share of common words. Against 60 questions of OpenMath none of 112 long answers of SmolLM2-135M has less; against 60
of few templates 2 have; of other questions of OpenMath, ARC or financial news none of 100; of 100 random token texts all."""
MOST_BROKEN = 0.05
"""Largest share of characters that are no text: replacement, private, unassigned, control."""
MOST_FOREIGN = 0.3
"""Largest share of letters of scripts that the task's own texts do not use."""
FEWEST_LETTERS = 12
COMMAND = re.compile(r"\\[A-Za-z]+|<[^<>\s]{1,30}>")
WORD = re.compile(r"[^\W\d_]+")
ONE_CHARACTER_WORDS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""Scripts written without spaces: each character counts as a word."""


@dataclass(frozen=True)
class Language:
    """What the task's own texts are written in."""

    common: frozenset[str]
    scripts: frozenset[str]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """Read it off questions and references."""
        counts: Counter[str] = Counter()
        scripts: Counter[str] = Counter()
        for text in texts:
            counts.update(words(text))
            scripts.update(script(letter) for letter in text if letter.isalpha())
        total = sum(scripts.values())
        used = (name for name, times in scripts.items() if times >= 0.02 * total)
        return cls(frozenset(word for word, _ in counts.most_common(COMMON_WORDS)), frozenset(used))

    def is_gibberish(self, text: str) -> bool:
        """Say whether a text that is not blank is no language.

        >>> task = Language.of(["How many eggs are in the box?", "There are 3 eggs in the box."])
        >>> [task.is_gibberish(text) for text in ("!!!!", "7", "So there are 7 eggs in the box on the left.")]
        [True, False, False]
        """
        visible = "".join(text.split())
        if not visible:
            return False
        if not any(character.isalnum() for character in visible):
            return True
        broken = sum(
            character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs") for character in visible
        )
        if broken > MOST_BROKEN * len(visible):
            return True
        letters = [character for character in visible if character.isalpha()]
        foreign = sum(script(letter) not in self.scripts for letter in letters)
        if self.scripts and len(letters) >= FEWEST_LETTERS and foreign > MOST_FOREIGN * len(letters):
            return True
        share = self.common_share(text)
        return share is not None and share < LEAST_COMMON

    def common_share(self, text: str) -> float | None:
        """Return the share of a text's words that are among the task's commonest; None for texts too short to tell."""
        found = words(text)
        if len(found) < FEWEST_WORDS or not self.common:
            return None
        return sum(word in self.common for word in found) / len(found)


def words(text: str) -> list[str]:
    r"""Return the words of a text in lower case, without LaTeX commands, numbers and single letters.

    >>> words(r"So \boxed{7} boxes of x; 猫が")
    ['so', 'boxes', 'of', '猫', 'が']
    """
    found = []
    for run in WORD.findall(COMMAND.sub(" ", text.casefold())):
        if script(run[0]) in ONE_CHARACTER_WORDS:
            found += list(run)
        elif len(run) > 1:
            found.append(run)
    return found


@cache
def script(letter: str) -> str:
    """Return the first word of a letter's Unicode name, which is its script.

    >>> script("a"), script("ж"), script("猫")
    ('LATIN', 'CYRILLIC', 'CJK')
    """
    return unicodedata.name(letter, "UNKNOWN").split(" ")[0].split("-")[0]
