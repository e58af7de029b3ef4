"""How does the outcome become one page that can be sent to a colleague? Findings first, then figures, then rows token by token.

The page looks like the report's (its style sheet, its policy), with no script at all: it follows the reader's colour scheme,
prints, and cannot be made to run what rows say. It holds text of the shown rows, and says so.
"""

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from quantkit.layout import cell_text, printable
from quantkit.preflight.examine import Preflight
from quantkit.preflight.finding import SEVERITIES
from quantkit.preflight.samples import Sample
from quantkit.reporting.page import PACKAGE as REPORT
from quantkit.reporting.page import POLICY, breakable

PACKAGE = "quantkit.preflight"
MEANING = {
    "error": "training on this would not teach what was meant",
    "warning": "worth a person's look before training",
    "repaired": "would have gone wrong with a plainer tool; what is done about it here",
    "note": "good to know",
}
MOST_PIECES = 1500
"""Pieces of a row on the page; of longer rows the middle is left out."""


def render_page(preflight: Preflight, *, made_at: str) -> str:
    """Return the page as HTML."""
    from importlib.resources import files

    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader(PACKAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"breakable": breakable, "short": short}
    styles = [
        files(package).joinpath("templates", name) for package, name in ((REPORT, "style.css"), (PACKAGE, "preflight.css"))
    ]
    page: str = environment.get_template("preflight.html").render(
        preflight=preflight,
        made_at=made_at,
        policy=POLICY.format(scripts="'none'"),
        style=Markup("\n".join(style.read_text(encoding="utf-8") for style in styles)),
        groups=[(severity, MEANING[severity], preflight.of(severity)) for severity in SEVERITIES if preflight.of(severity)],
        settings=[(name, _told(value)) for name, value in preflight.settings.items() if value is not None],
        samples=[(sample, list(_spans(sample))) for sample in preflight.samples],
    )
    return page


def short(name: str) -> str:
    """Return a data set's or model's name without the folders of an absolute path, which are nobody else's business.

    >>> [short(name) for name in ("openmath:/rows/of/mine/train.jsonl", "org/Model", "rows/a.jsonl")]
    ['openmath:train.jsonl', 'org/Model', 'rows/a.jsonl']
    """
    head, colon, rest = name.rpartition(":")
    path = PurePath(rest)
    return f"{head}{colon}{path.name}" if path.is_absolute() or rest.startswith("~") else name


def _told(value: object) -> str:
    return short(value) if isinstance(value, str) else cell_text(value)


def _spans(sample: Sample) -> Iterator[dict[str, Any]]:
    """Yield each piece of a row as the page shows it; where the middle is left out, how many pieces that are."""
    pieces, half = sample.pieces, MOST_PIECES // 2
    left_out = max(0, len(pieces) - 2 * half)
    for number, piece in enumerate(pieces):
        if left_out and number == half:
            yield {"left_out": left_out}
        if left_out and half <= number < half + left_out:
            continue
        yield {
            "left_out": 0,
            "text": printable(piece.text),
            "kind": ("learnt" if piece.learnt else "read") + (" odd" if number % 2 else ""),
            "title": f"{'learnt' if piece.learnt else 'not learnt'}, token {' '.join(map(str, piece.ids))}",
        }
