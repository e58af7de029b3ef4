"""What does the card of an exported model say it is? The same model in another layout, or how far from it."""

from collections.abc import Mapping
from typing import Any


def exported_summary(export: Mapping[str, Any], *, source: str, stored: str, layout: str) -> str:
    """Return the sentence; `export` is the record's `verification.export`, `source` and `stored` are words for both models."""
    held = f"`{source}`, which holds {export['from']} weights"
    if export["step"] == "repack":
        return f"{held}, in the layout of {layout}: the same codes, scales and zero points, compared bit for bit."
    if export["outcome"] == "exact":
        return f"{held}, stored as {stored}: the weights that it computes with, and the same logits, bit for bit."
    return (
        f"{held}, stored as {stored}. **It is not the same model**: weights are rounded to this data type, or activations are"
        f" no longer rounded; mean KL {export['compared_with_source']['mean_kl']:.2g} nats from it."
    )
