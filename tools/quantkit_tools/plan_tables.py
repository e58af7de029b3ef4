"""`quantkit plan --table`: the classical sizes x ways of training from our own counting, and published figures beside ours."""

from quantkit import console
from quantkit.console import Column, table
from quantkit.forecasting.classical import COLUMNS, SETTINGS_TEXT, classical_rows, differences
from quantkit.forecasting.published import TOLERANCE, compare_all


def show_classical(*, json: bool) -> int:
    """Print the tables, or one JSON object of them."""
    rows, compared = classical_rows(), compare_all()
    if json:
        console.emit_json(
            {
                "settings": SETTINGS_TEXT,
                "sizes": [row.to_dict() for row in rows],
                "differences": differences(),
                "published": [item.to_dict() for item in compared],
            }
        )
        return 0
    columns = [Column("GiB of one GPU"), *(Column(name, "right") for name in COLUMNS)]
    table("Model size x way of training", columns, [[row.way, *(f"{size:,.1f}" for size in row.ours_gib)] for row in rows])
    console.say(SETTINGS_TEXT, style="dim")
    said = [[row.way, *row.theirs, row.source] for row in rows if row.theirs]
    table("The same from others", [Column("published"), *(Column(name, "right") for name in COLUMNS), Column("by")], said)
    for line in differences():
        console.say(f"· {line}")
    figures = [
        [
            item.figure.name,
            f"{item.figure.gib:.2f}",
            f"{item.gib:.2f}",
            f"{item.difference:+.0%}",
            "yes" if item.met else "lost",
        ]
        for item in compared
    ]
    heads = [Column("published figure"), Column("GiB", "right"), Column("ours", "right"), Column("off", "right"), Column("met")]
    table(f"Measured by others, and our counting ({TOLERANCE:.0%} is met)", heads, figures)
    for reason in dict.fromkeys(item.figure.reason for item in compared if item.figure.reason):
        console.say(f"· lost: {reason}")
    console.say("as stated or assumed:", style="dim")
    for how in dict.fromkeys(f"{item.figure.source}: {item.figure.stated}" for item in compared):
        console.say(f"· {how}", style="dim")
    return 0
