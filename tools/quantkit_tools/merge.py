"""`quantkit merge`: fold a kept adapter into its base, compare with what was trained, save under its standardized name."""

import sys

from quantkit import console
from quantkit.files import making
from quantkit.methods import installed_methods
from quantkit_tools.merging.flags import MergeConfig, parse_merge_flags


def main(arguments: list[str]) -> int:
    """Run `quantkit merge ADAPTER FLAGS`; exit code 3 when the result lost too much of the fine-tune's gain."""
    flags = parse_merge_flags(arguments)
    if flags.json:
        console.use_stderr()
    return run(flags.config, dry_run=flags.dry_run, json=flags.json)


def run(config: MergeConfig, *, dry_run: bool = False, json: bool = False) -> int:
    """Carry out one merge and return the exit code; the same merge a second time finds the first and changes nothing.

    Raises:
        QuantkitError: what is wrong with adapter, base, settings or result; nothing half-written is left.
    """
    from quantkit.modeling import load_tokenizer
    from quantkit_tools.merging.making import Merging, make_merged
    from quantkit_tools.merging.planning import announce, existing_merge, plan_merge
    from quantkit_tools.merging.texts import texts_of
    from quantkit_tools.verdict import report_gate

    methods = installed_methods()
    job = plan_merge(config, methods)
    announce(job)
    if dry_run:
        if json:
            console.emit_json(job.to_dict())
        return 0
    there = existing_merge(job)
    if there is not None:
        console.say(f"{job.target} exists: the same adapter, merged into the same base in the same way; nothing was done")
        written = there.to_dict()
    else:
        with making(job.target, overwrite=config.overwrite):
            tokenizer = load_tokenizer(job.opened.tokenizer, trust_remote_code=config.trust_remote_code)
            rows, calibration = texts_of(job, tokenizer)
            merging = Merging(job=job, rows=rows, calibration=calibration, methods=methods)
            written = make_merged(merging, tokenizer)
    console.say(f"artifact: {job.target}", style="bold")
    code = report_gate(written)
    console.say(f"next: quantkit evaluate {job.target}")
    if json:
        verification = written["verification"]
        said = {"fidelity": verification.get("fidelity"), "gate": verification.get("gate"), "made": there is None}
        console.emit_json({"artifact": str(job.target), "name": job.name, "policy": job.policy} | said)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
