"""`quantkit export`: can this be had for that server or in that format, and is it the same model then? Made where it is exact.

Answers come from headers and configuration, before weights are read; a hub id is answered from its small files. What is made
appears under its standardized name, after it was loaded and compared.
"""

import sys

from quantkit import console
from quantkit.console import Column
from quantkit.errors import UsageError, VerificationError, did_you_mean
from quantkit.exporting import TARGETS, Answer, Rows, known_rows
from quantkit.exporting.document import short
from quantkit.methods import installed_methods
from quantkit_tools.exporting.asked import Asked, Flags, found_at, holding_of
from quantkit_tools.exporting.naming import planned_name
from quantkit_tools.small_flags import read_small_flags


def main(arguments: list[str]) -> int:
    """Run `quantkit export [ARTIFACT] [--to TARGET] …`."""
    flags = read_small_flags(Flags, "export", arguments)
    if flags.json:
        console.use_stderr()
    _require_sense(flags)
    methods = installed_methods()
    rows = known_rows(methods)
    for reason in rows.broken:
        console.warn(f"left out: {reason}")
    if flags.table:
        return show_table(flags, rows)
    found = found_at(flags, methods)
    asked = Asked(holding=holding_of(found, flags.artifact, rows), detection=found, flags=flags)
    if not flags.to:
        return show_all(asked)
    answer = asked.answer(asked.target)
    if flags.dry_run:
        return show_one(asked, answer)
    if answer.step == "route":
        raise UsageError(f"{asked.holding.name}: --to {flags.to}: {answer.outcome}. Route: {answer.how}")
    from quantkit_tools.exporting.making import check_as_it_is, make

    show_one(asked, answer, json=False)
    written = check_as_it_is(asked, answer, methods) if answer.step == "none" else make(asked, answer, methods)
    if flags.json:
        console.emit_json({"answer": answer.to_dict()} | written)
    return 0


def _require_sense(flags: Flags) -> None:
    known = [target for target in TARGETS if target != "dense"]
    if flags.to and flags.to not in known:
        raise UsageError(f"--to {flags.to!r}: no such target.{did_you_mean(flags.to, known)} Known: {', '.join(known)}.")
    if flags.dequantize and flags.to not in ("transformers", "vllm"):
        raise UsageError("--dequantize writes dense weights: it goes with --to transformers or --to vllm")
    if flags.dtype not in ("auto", "bfloat16", "float16", "float32"):
        raise UsageError(f"--dtype {flags.dtype!r}: auto, bfloat16, float16 or float32 is wanted")
    if flags.dtype != "auto" and not flags.dequantize:
        raise UsageError("--dtype is the data type of dequantized weights; say --dequantize, too")
    if flags.converter and flags.to != "gguf":
        raise UsageError("--converter converts to GGUF; say --to gguf, too")
    if not flags.table and not flags.artifact:
        raise UsageError("name an artifact, a folder or a hub id; or --table for every kind of them")


def show_all(asked: Asked) -> int:
    """Print the answers for every target."""
    answers = {target: asked.answer(target) for target in TARGETS}
    if asked.flags.json:
        found = {target: answer.to_dict() for target, answer in answers.items()}
        console.emit_json({"artifact": asked.holding.name, "source": asked.holding.source, "targets": found})
        return 0
    rows = [[_typed(target), short(answer), _told(answer)] for target, answer in answers.items()]
    title = f"{asked.holding.name}: {asked.holding.title}"
    console.table(title, ["--to", "answer", "how"], rows, caption="* this command does it; the others name their route")
    return 0


def show_one(asked: Asked, answer: Answer, *, json: bool = True) -> int:
    """Print one answer, and what would be written; exit code 3 when there is no way."""
    target = str(planned_name(asked)[1]) if answer.step not in ("none", "route") else None
    if asked.flags.json and json:
        console.emit_json(
            {"artifact": asked.holding.name, "source": asked.holding.source, "to": asked.target, "written": target}
            | answer.to_dict()
        )
    else:
        rows = [
            ["from", asked.holding.title],
            ["to", _typed(asked.target)],
            ["answer", answer.outcome],
            ["how", answer.how],
            *(["note", note] for note in answer.notes),
            *([["needs", ", ".join(answer.needs)]] if answer.needs else []),
            *([["as", target]] if target else []),
            ["rests on", answer.source],
        ]
        console.table(asked.holding.name, ["", ""], rows)
    return 0 if answer.possible else VerificationError.exit_code


def show_table(flags: Flags, rows: Rows) -> int:
    """Print the whole table."""
    if flags.json:
        entries = [{"from": s, "to": t} | rows.table[s, t].to_dict() for s in rows.sources for t in TARGETS]
        console.emit_json({"table": entries})
        return 0
    columns = [Column("from"), *(Column(target, priority=place) for place, target in enumerate(TARGETS))]
    lines = [[named, *(short(rows.table[source, target]) for target in TARGETS)] for source, named in rows.sources.items()]
    console.table("What can be exported to what", columns, lines, caption="* this command does it; dense: --dequantize")
    return 0


def _typed(target: str) -> str:
    return "transformers --dequantize" if target == "dense" else target


def _told(answer: Answer) -> str:
    return " ".join([answer.how, *answer.notes])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
