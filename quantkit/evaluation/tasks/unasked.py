"""How well does the model know these rows, without being asked anything?

`perplexity` judges the tokens of the rows, `divergence` the model's whole next-token distributions beside those of a
reference model, at the positions of the responses: the sharpest measure of what quantization did, and one that no lucky
answer can flatter. Both read conversations and rows of plain text.
"""

from dataclasses import dataclass
from typing import ClassVar

from quantkit.evaluation.tasks.base import Asks, Task


@dataclass(frozen=True, kw_only=True)
class Perplexity(Task):
    """Rows whose tokens are judged; nothing is generated."""

    kind: ClassVar[str] = "perplexity"
    asks: ClassVar[Asks] = "tokens"
    metric: ClassVar[str] = "perplexity_response"


@dataclass(frozen=True, kw_only=True)
class Divergence(Task):
    """Rows on which the model is compared with a reference model; nothing is generated."""

    kind: ClassVar[str] = "divergence"
    asks: ClassVar[Asks] = "divergence"
    metric: ClassVar[str] = "kl_mean"
