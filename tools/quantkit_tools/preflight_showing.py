"""What does a person see of a preflight, and what of it during a run?

The verb shows rows first and the verdict last, where the eye is when a command ends. A run prints its warnings in a line each,
without those its data report says already, and stops on errors: it has no page to show.
"""

from quantkit import console
from quantkit.config import RunConfig
from quantkit.console import MARKS, Column
from quantkit.errors import VerificationError
from quantkit.preflight import Finding, Preflight

LONGEST_SEGMENT = 700
"""Characters of a part of a row that are shown; of longer parts, beginning and end."""
REPORTED = ("unusable rows", "repeated rows", "overlap", "cut rows", "chat template")
"""Checks whose warnings stand in the data report that a run prints."""
COLUMNS = [Column("severity\nlooked at"), Column("found\n→ what to do, or is done")]


def show(found: Preflight) -> None:
    """Print rows, figures, findings and the verdict."""
    if found.samples:
        learnt = "in green" if console.has_colour() else f"between {MARKS[0]} and {MARKS[1]}"
        console.say(f"Rows as the model sees them; what is learnt stands {learnt}", style="bold")
    for sample in found.samples:
        cut = f", {sample.cut_tokens:,} more cut off" if sample.cut_tokens else ""
        console.say(
            f"\n{sample.place}, {sample.why}: {sample.tokens:,} tokens, {sample.supervised:,} learnt{cut}", style="bold"
        )
        console.say_marked([(_shortened(text), is_learnt) for text, is_learnt in sample.segments])
    if found.report is not None:
        evaluated = found.report.evaluation is not None
        heads = [Column("figure"), Column("training", "right"), *([Column("evaluation", "right")] if evaluated else [])]
        console.table("Figures", heads, [row if evaluated else row[:2] for row in found.figures])
    console.table("Findings", COLUMNS, [[f"{item.severity}\n{item.check}", _text(item)] for item in found.findings])
    console.say(f"\n{found.verdict}", style="bold")


def heed(found: Preflight, config: RunConfig) -> None:
    """Print a run's warnings, and stop it on errors unless `preflight` is `warn`.

    Raises:
        VerificationError: training on this would not teach what was meant.
    """
    errors = found.of("error")
    if errors and config.preflight == "error":
        more = f" ({len(errors) - 1} more: quantkit preflight shows all)" if len(errors) > 1 else ""
        raise VerificationError(f"{errors[0].check}: {errors[0].line}{more}; preflight=warn trains all the same")
    for finding in [*errors, *(item for item in found.of("warning") if item.check not in REPORTED)]:
        console.warn(f"{finding.check}: {finding.line}")


def _text(finding: Finding) -> str:
    return f"{finding.found}\n→ {finding.advice}" if finding.advice else finding.found


def _shortened(text: str) -> str:
    if len(text) <= LONGEST_SEGMENT:
        return text
    half = LONGEST_SEGMENT // 2
    return f"{text[:half]} […{len(text) - 2 * half:,} characters…] {text[-half:]}"
