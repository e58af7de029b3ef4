"""`quantkit train`: fine-tune, merge, save. The order of a run's steps stands here; the steps stand in `stages`."""

import sys
from contextlib import ExitStack
from pathlib import Path

from quantkit import console
from quantkit.config import RunConfig
from quantkit.files import making
from quantkit.joining import together
from quantkit.memory import MemoryLog
from quantkit.methods import installed_methods
from quantkit.processes import INTERRUPTED, Processes
from quantkit_tools import stages
from quantkit_tools.disk_room import require_disk
from quantkit_tools.flags import parse_train_flags
from quantkit_tools.foresight import foresee, require_room, telling_what_fits
from quantkit_tools.merging.in_run import RunEnd
from quantkit_tools.outlook import show_outlook
from quantkit_tools.planning import announce, plan_run
from quantkit_tools.quantizing.run_base import with_quantized_base
from quantkit_tools.verdict import report_gate


def main(arguments: list[str]) -> int:
    """Run `quantkit train`."""
    flags = parse_train_flags(arguments)
    if flags.json:
        console.use_stderr()
    return run(flags.config, dry_run=flags.dry_run, json=flags.json)


def run(config: RunConfig, *, dry_run: bool = False, json: bool = False) -> int:
    """Carry out one run and return the exit code; the script and the verb both call this, and it raises as `carry_out` does."""
    return carry_out(config, dry_run=dry_run, json=json)[0]


def carry_out(config: RunConfig, *, dry_run: bool = False, json: bool = False) -> tuple[int, Path]:
    """Carry out one run; return the exit code and the folder of its artifact, which is there after 0, and marked after 3.

    Raises:
        QuantkitError: what is wrong with settings, data, model or result; nothing half-written is left.
    """
    with together(config.device) as processes, ExitStack() as held:
        return _run(config, processes, held, dry_run=dry_run, json=json)


def _run(config: RunConfig, processes: Processes, held: ExitStack, *, dry_run: bool, json: bool) -> tuple[int, Path]:
    if processes.split_by_launcher:
        config = config.with_changes(sharding="fsdp2")
    methods, memory = installed_methods(), MemoryLog()
    plan = plan_run(config, methods)
    announce(plan)
    if dry_run:
        expected = show_outlook(plan, methods)
        if json:
            console.emit_json(plan.to_dict() | {"forecast": expected})
        return 0, plan.target
    if processes.first:
        held.enter_context(making(plan.target, overwrite=config.overwrite))
    tokenizer = stages.load_tokenizer(plan)
    data = stages.prepare_rows(plan, tokenizer) if config.dataset_name else None
    begun = None if data is None else stages.find_start(plan, data, tokenizer)
    if data is not None and plan.quantizes_base:
        with memory.stage("quantize base"), processes.one_first():
            plan = with_quantized_base(plan, data, tokenizer, methods)
    foresight = None if data is None else foresee(plan, data, begun, methods=methods)
    memory.forecast = require_room(foresight, force=config.force)
    if foresight is not None and processes.first:
        require_disk(plan, foresight.forecast)
    with memory.stage("load"):
        model = stages.load_trainable(plan, methods)
    result = None
    rows = stages.compared_rows(plan, data, tokenizer)
    if data is not None:
        with memory.stage("train"), telling_what_fits(foresight):
            result = stages.train(plan, model, data, tokenizer, begun)
        if result.interrupted:
            console.say(
                f"interrupted after step {result.steps} of {result.total_steps}; go on with resume_from_checkpoint=true"
            )
            return processes.end(INTERRUPTED) if processes.first else processes.follow(), plan.target
    if not processes.first:
        del model
        return processes.follow(), plan.target
    if plan.merges and data is not None and result is not None:
        ending = RunEnd(plan, data, rows, result, tokenizer, memory, methods)
        models = [model]
        del model
        written = ending.merge(models)
    else:
        with memory.stage("save"):
            record = stages.make_record(plan, data=data, training=result, memory=memory)
            written = stages.save(plan.held_whole(), model, tokenizer, record, methods=methods, rows=rows)
    stages.clear_checkpoints(plan)
    stages.report(plan, result, memory)
    code = report_gate(written) if plan.merges else 0
    if json:
        console.emit_json({"artifact": str(plan.target), "name": plan.name})
    return processes.end(code), plan.target


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
