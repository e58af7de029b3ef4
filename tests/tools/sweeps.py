"""A sweep file as the command reads it, and what it has done so far."""

from pathlib import Path

from quantkit.methods import installed_methods
from quantkit.sweeping import read_sweep
from quantkit_tools.sweep_journal import Journal
from quantkit_tools.sweep_planning import SweepPlan, plan_sweep


def planned(path: Path) -> SweepPlan:
    return plan_sweep(read_sweep(path), installed_methods())


def journal_of(plan: SweepPlan) -> Journal:
    return Journal(plan.work, plan.root)
