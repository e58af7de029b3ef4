"""Will these rows teach this model what was meant? Asked with its tokenizer and configuration alone, before weights are read.

`examine` runs the checks of `rows`, `tokens`, `scripts` and `template` over what `quantkit.data.read_data` read; `samples`
shows rows with their mask, `page` is the same for a browser. Looking at the first rows by eye, the alternative, does not
see row 7,000.
"""

from quantkit.preflight.examine import Preflight, examine, unreadable
from quantkit.preflight.finding import Finding
from quantkit.preflight.look import ModelFacts

__all__ = ["Finding", "ModelFacts", "Preflight", "examine", "unreadable"]
