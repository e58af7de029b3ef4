"""What is in these folders, and how good is it? (`quantkit evaluate PATH…`)

Each path is detected, loaded as exactly that (an adapter on the base it was trained on), measured against what was said,
and scored. Several paths run in a process each: one that crashes costs only itself, and peak memory is its own. Adapters of one
base and recipe share a process and the base, and are exchanged on it. The steps stand in `quantkit_tools.evaluation`.
"""

from typing import Any

from quantkit import console
from quantkit.errors import UsageError
from quantkit_tools.evaluation.comparing import SCHEMA_VERSION, check_baseline, show, warn_degenerate
from quantkit_tools.evaluation.flags import Flags
from quantkit_tools.evaluation.groups import evaluate_each
from quantkit_tools.evaluation.harness import check_harness
from quantkit_tools.evaluation.pending import evaluate_pending
from quantkit_tools.evaluation.scoring import evaluate_path
from quantkit_tools.small_flags import read_small_flags


def main(arguments: list[str]) -> int:
    """Run `quantkit evaluate`; the exit code is that of the worst path, 3 where an artifact answers nothing sensible."""
    flags = read_small_flags(Flags, "evaluate", arguments)
    if flags.json:
        console.use_stderr()
    check_harness(flags)
    if flags.pending:
        return evaluate_pending(flags)
    if flags.dry_run:
        raise UsageError("--dry-run lists what has no result yet; it goes with --pending")
    if not flags.paths:
        raise UsageError("no path was given; quantkit evaluate FOLDER… names what to evaluate, --pending finds it")
    check_baseline(flags.baseline, flags.paths)
    if len(flags.paths) == 1:
        done, failed = [evaluate_path(flags, flags.paths[0])], list[dict[str, Any]]()
    else:
        done, failed = evaluate_each(flags)
    compared = show(done, baseline=flags.baseline)
    for failure in failed:
        console.warn(f"{failure['path']} was not evaluated: {failure['error']}")
    if flags.json:
        artifacts = [artifact.to_dict() for artifact in done]
        console.emit_json({"schema_version": SCHEMA_VERSION, "artifacts": artifacts, "failed": failed} | compared)
    return max([int(failure["exit_code"]) for failure in failed] + [warn_degenerate(done)])
