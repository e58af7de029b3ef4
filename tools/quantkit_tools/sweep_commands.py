"""Which command lines are the steps of a sweep, for this machine or for the scheduler of a cluster?

Each is a plain `quantkit train` or `quantkit merge`, which can be copied and run by hand. A queue of our own would do badly
what every cluster already has; what it cannot know, which steps share a quantized base or an adapter, is one job here.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantkit.config import RunConfig
from quantkit.files import write_json
from quantkit_tools.merging.in_run import FEWEST_TOKENS
from quantkit_tools.sweep_planning import Step, SweepPlan


def run_file(plan: SweepPlan) -> Path:
    """Return where the settings of all trainings stand as named runs, for `quantkit train --config`."""
    return plan.work / "runs.json"


def write_runs(plan: SweepPlan) -> None:
    """Write the run file; settings that are the default are left out."""
    write_json(run_file(plan), {step.name: _changed(step.config) for step in plan.steps if step.kind == "train"})


def command_of(plan: SweepPlan, step: Step) -> list[str]:
    """Return the arguments of `quantkit` that carry out a step; a training goes on from its checkpoint where there is one."""
    config = step.config
    if step.kind == "train":
        checkpoints = plan.root / ".checkpoints" / step.name
        resumes = ["--resume-from-checkpoint"] if checkpoints.is_dir() else []
        return ["train", "--config", str(run_file(plan)), "--run", step.name, *resumes]
    settings: dict[str, Any] = {"policy": step.policy, "dst": plan.root, "seed": config.seed, "device": config.device}
    if step.policy == "requantized":
        settings |= {"calib_rows": config.calib_rows, "calib_length": config.calib_length, "calib_min_tokens": FEWEST_TOKENS}
    else:
        settings |= {"save_dtype": config.save_dtype}
    words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    trust = ["--trust-remote-code"] if config.trust_remote_code else []
    return ["merge", str(plan.root / str(step.needs)), *words, *trust]


def jobs(plan: SweepPlan, steps: Sequence[Step]) -> list[str]:
    """Return one shell line per job: a training and its merges; trainings that make the same base stand in one job, in turn."""
    left = {step.name for step in steps}
    chains: dict[str, list[str]] = {}
    for step in plan.steps:
        if step.kind == "merge":
            continue
        merges = [_line(plan, other) for other in plan.needed_by(step) if other.name in left]
        parts = [_line(plan, step)] if step.name in left else []
        line = " && ".join([*parts, f"{{ {'; '.join(merges)}; }}"] if merges else parts)
        if line:
            chains.setdefault(step.after or step.name, []).append(line)
    return ["; ".join(lines) for lines in chains.values()]


def slurm_script(plan: SweepPlan, steps: Sequence[Step], again: str) -> str:
    """Return an sbatch script with one array task per job; `again` is the command that evaluates when all have ended."""
    lines = jobs(plan, steps)
    cases = "\n".join(f"{index}) {line} ;;" for index, line in enumerate(lines))
    name = plan.sweep.path.stem
    return f"""#!/bin/bash
# {len(lines)} jobs of the sweep {plan.sweep.path}. Resources (time, memory, GPUs, partition) are yours to add:
#   sbatch --time=… --gres=… SCRIPT
# When all have ended, this finds what they made, runs what is missing, evaluates and reports:
#   sbatch --dependency=afterany:JOBID --wrap {shlex.quote(again)}
#SBATCH --job-name=quantkit-{shlex.quote(name)}
#SBATCH --array=0-{len(lines) - 1}
cd {shlex.quote(str(Path.cwd()))} || exit 1
case "$SLURM_ARRAY_TASK_ID" in
{cases}
*) echo "no job has the number $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;
esac
"""


def _line(plan: SweepPlan, step: Step) -> str:
    return shlex.join(["quantkit", *command_of(plan, step)])


def _changed(config: RunConfig) -> dict[str, Any]:
    """Return the settings that are not the default."""
    default = RunConfig(model_name_or_path=config.model_name_or_path).to_dict()
    return {
        name: value
        for name, value in config.to_dict().items()
        if value != default[name] or name in ("model_name_or_path", "quant_method", "peft_config", "seed")
    }
