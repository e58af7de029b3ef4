"""How does a sweep end? In the evaluation of everything it was asked for, and one report over it.

It is `quantkit evaluate --pending` on the sweep's artifacts, so what was evaluated before stays, and adapters of one base
share it. The flags of the section `evaluate` are checked, and its rows read, before anything is trained.
"""

import subprocess
from dataclasses import fields
from typing import Any

from quantkit import console
from quantkit.errors import QuantkitError, UsageError, did_you_mean
from quantkit.layout import counted
from quantkit.options import check_value
from quantkit.sweeping import BASE, Sweep
from quantkit_tools.evaluation.flags import Flags
from quantkit_tools.evaluation.scoring import tasks_of
from quantkit_tools.sweep_planning import SweepPlan
from quantkit_tools.sweep_running import Outcome
from quantkit_tools.verb_process import command_line, words_of

OF_THE_SWEEP = (
    *("paths", "registry", "method", "base", "device", "trust_remote_code", "pending", "dry_run", "json"),
    *("fresh", "baseline", "harness", "harness_include", "num_fewshot", "apply_chat_template", "integer_kernels"),
)
"""Flags of `quantkit evaluate` that the sweep sets itself, and those that fit some methods only or not `--pending`."""
PAGE = "report.html"


def evaluation_words(sweep: Sweep) -> list[str] | None:
    """Return the flags of `quantkit evaluate` for the section `evaluate`; None where there is none.

    Raises:
        UsageError: a key is no such flag, a value does not fit, or its rows cannot be read.
    """
    if sweep.evaluate is None:
        return None
    known = [item.name for item in fields(Flags) if item.name not in OF_THE_SWEEP]
    where = f"{sweep.path}: evaluate"
    settings: dict[str, Any] = {}
    for key, value in sweep.evaluate.items():
        name = str(key).replace("-", "_")
        if name == BASE:
            continue
        if name not in known:
            raise UsageError(f"{where}: {key!r} is no flag of quantkit evaluate.{did_you_mean(name, [*known, BASE])}")
        plain = ",".join(map(str, value)) if isinstance(value, list) else value
        settings[name] = check_value(Flags, name, plain, where=where)
    try:
        tasks_of(Flags(paths=(), **settings), None)
    except QuantkitError as error:
        raise UsageError(f"{where}: {error}") from None
    return words_of(settings)


def evaluate(plan: SweepPlan, outcome: Outcome, words: list[str], *, json: bool) -> int:
    """Evaluate the artifacts that were asked for, in a process of its own; return its exit code."""
    wanted = [str(step.target) for step in plan.steps if step.evaluated and step.name in outcome.done]
    if not wanted:
        return 0
    config = plan.steps[0].config
    more = ["--registry", str(plan.root), "--device", config.device]
    more += ["--trust-remote-code"] if config.trust_remote_code else []
    command = command_line(["evaluate", *wanted, "--pending", *more, *words])
    console.say(f"evaluating {counted(len(wanted), 'artifact')}")
    try:
        if json:
            return subprocess.run([*command, "--json"], check=False, stdout=subprocess.DEVNULL).returncode
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        return 130


def report(plan: SweepPlan, outcome: Outcome) -> str:
    """Print the report on what was asked for, and write its page; return the page's path."""
    from quantkit_tools.report import main

    wanted = [step.name for step in plan.steps if step.evaluated and step.name in outcome.done]
    page = plan.root / PAGE
    main([*wanted, "--registry", str(plan.root), "--html", str(page), "--overwrite"])
    return str(page)
