"""`quantkit quantize`: make a finished model small, judge it against its source, save it under its standardized name."""

import sys
from typing import Any

from quantkit import console
from quantkit.errors import UsageError
from quantkit.files import making
from quantkit.methods import Methods, installed_methods
from quantkit.plan import Stage
from quantkit_tools.quantizing.flags import QuantizeConfig, parse_quantize_flags

COMMANDS = ("run", "list")


def main(arguments: list[str]) -> int:
    """Run `quantkit quantize [run] FLAGS`, or `quantkit quantize list [--json]`; exit code 3 when the gate did not pass."""
    command, rest = (arguments[0], arguments[1:]) if arguments and arguments[0] in COMMANDS else ("run", arguments)
    if command == "list":
        return show_methods(rest)
    flags = parse_quantize_flags(rest)
    if flags.json:
        console.use_stderr()
    return run(flags.config, dry_run=flags.dry_run, json=flags.json)


def run(config: QuantizeConfig, *, dry_run: bool = False, json: bool = False) -> int:
    """Carry out one quantization and return the exit code; the script and the verb both call this.

    Raises:
        QuantkitError: what is wrong with settings, source, text or result; finished blocks are kept for the next try.
    """
    from quantkit.modeling import load_tokenizer
    from quantkit_tools.quantizing.making import make_quantized
    from quantkit_tools.quantizing.planning import announce, plan_quantization
    from quantkit_tools.quantizing.texts import making_of, texts_of
    from quantkit_tools.verdict import report_gate

    methods = installed_methods()
    job = plan_quantization(config, methods)
    announce(job)
    if dry_run:
        if json:
            console.emit_json(job.to_dict())
        return 0
    with making(job.target, overwrite=config.overwrite):
        tokenizer = load_tokenizer(job.source.tokenizer, trust_remote_code=config.trust_remote_code)
        texts = texts_of(job, tokenizer, methods)
        written = make_quantized(making_of(job), texts, tokenizer, methods)
    console.say(f"artifact: {job.target}", style="bold")
    code = report_gate(written)
    console.say(f"next: quantkit evaluate {job.target}")
    if json:
        verdict = written["verification"]["gate"]
        console.emit_json({"artifact": str(job.target), "name": job.name, "gate": verdict})
    return code


def show_methods(arguments: list[str]) -> int:
    """Print the methods that quantize finished models, with whether they want calibration text."""
    if unknown := [word for word in arguments if word != "--json"]:
        raise UsageError(f"quantkit quantize list takes --json only; found {unknown[0]!r}")
    methods = installed_methods()
    entries = [_entry(methods, name) for name in methods.names if Stage.TRAINED in methods.info(name).stages]
    if "--json" in arguments:
        console.use_stderr()
        console.emit_json({"methods": entries})
    else:
        rows = [[entry["name"], entry["calibration"], not entry["missing"], entry["summary"]] for entry in entries]
        columns = ["method", "calibration", "usable", "summary"]
        console.table("Methods for finished models", columns, rows, caption="`quantkit methods NAME` shows a method's options")
    return 0


def _entry(methods: Methods, name: str) -> dict[str, Any]:
    info = methods.info(name)
    return {
        "name": info.name,
        "calibration": info.calibration,
        "missing": list(methods.missing(name)),
        "summary": info.summary,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
