"""What might a folder's name mean? Only ever a hint, printed beside the facts and used for nothing.

The community's suffixes are habits, not promises: `-AWQ` repositories hold other formats, `4bits_r4` was written by a
script before it knew whether its request for 4 bits took effect.
"""

import re

SUFFIXES = (
    (re.compile(r"(?i)[-_.]bnb[-_]4bit$"), "bitsandbytes 4-bit weights"),
    (re.compile(r"(?i)[-_.](?:bnb[-_])?(?:8bit|int8)$"), "8-bit weights"),
    (re.compile(r"(?i)[-_.]GPTQ(?:[-_]Int(\d))?(?:[-_.]|$)"), "GPTQ weights"),
    (re.compile(r"(?i)[-_.]AWQ(?:[-_.]|$)"), "AWQ weights"),
    (re.compile(r"(?i)[-_.]w(\d)a(\d+)(?:[-_.]|$)"), "compressed-tensors weights"),
    (re.compile(r"(?i)[-_.]FP8(?:-dynamic)?$"), "FP8 weights"),
    (re.compile(r"(?i)[-_.]GGUF$"), "GGUF files"),
    (re.compile(r"(?i)(?:^|[-_.])(\d)bits?(?:[-_.]|$)"), "training on a quantized base"),
    (re.compile(r"(?i)[-_.]4bit$"), "4-bit weights"),
)


def hint_of(name: str) -> str | None:
    """Return what a folder's or repository's name suggests, or None.

    >>> hint_of("Llama-3-8B-GPTQ-Int4")
    'the name looks like GPTQ weights (4 bits); a hint only'
    >>> hint_of("4bits_r4")
    'the name looks like training on a quantized base (4 bits); a hint only'
    """
    for pattern, meaning in SUFFIXES:
        if found := pattern.search(name):
            bits = next((group for group in found.groups() if group), None)
            return f"the name looks like {meaning}{f' ({bits} bits)' if bits else ''}; a hint only"
    return None
