"""How does the table of what can be exported get into README.md, so that it says what the code does?

Rendered from quantkit's rows and those that its plugins declare (`python -m quantkit.exporting.document`); a test compares the
file with what is rendered. Written by hand, such a table is wrong after the first change to a format.
"""

import sys
from pathlib import Path

from quantkit.exporting.answers import OUTCOMES, STEPS, TARGETS, Answer
from quantkit.exporting.rows import Rows, known_rows
from quantkit.files import write_text
from quantkit.methods import installed_methods

README = Path(__file__).with_name("README.md")
HEAD = """# What can be exported to what

`quantkit export ARTIFACT` answers this for one artifact, with its own bits, sizes and layers; `quantkit export --table` prints
what follows, with the formats of other plugins that are installed. This file is made by `python -m quantkit.exporting.document`
from `quantkit/exporting/table.py` and from what quantkit's plugins declare (`declare_exports` in `plugins/README.md`).
"""


def shipped_rows() -> Rows:
    """Return what quantkit and its own plugins say."""
    return known_rows(installed_methods(), distribution="quantkit")


def render(rows: Rows) -> str:
    """Return the text of README.md."""
    parts = [HEAD, "## Words\n", *(f"- **{word}**: {meaning}." for word, meaning in OUTCOMES.items())]
    parts += ["", "`*` marks what this command does itself:", ""]
    parts += [f"- `{step}`: {meaning}." for step, meaning in STEPS.items() if step not in ("none", "route")]
    parts += ["", "## The table\n", f"| from \\ to | {' | '.join(TARGETS)} |", "|---|" + "---|" * len(TARGETS)]
    for source, named in rows.sources.items():
        parts.append(f"| {named} | {' | '.join(short(rows.table[source, target]) for target in TARGETS)} |")
    parts += ["", *(f"- `{target}`: {meaning}." for target, meaning in TARGETS.items()), ""]
    for source, named in rows.sources.items():
        parts += [f"## From {named}\n", "| to | answer | how | rests on |", "|---|---|---|---|"]
        for target in TARGETS:
            answer = rows.table[source, target]
            needs = f" Needs {', '.join(f'`{need}`' for need in answer.needs)}." if answer.needs else ""
            how = answer.how.replace("{name}", "NAME").replace("|", "\\|")
            parts.append(f"| {target} | {short(answer)} | {how}{needs} | {answer.source} |")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def short(answer: Answer) -> str:
    """Return an answer in a word; `*` marks what quantkit does itself."""
    return answer.outcome + ("" if answer.step in ("none", "route") else "*")


def main() -> int:
    """Write README.md."""
    write_text(README, render(shipped_rows()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
