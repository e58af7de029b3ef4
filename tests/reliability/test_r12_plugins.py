"""R12: whatever a broken plugin does when it is imported, commands answer in time, name it, and lose only its method."""

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from quantkit import PlanContext
from quantkit.errors import PluginError
from quantkit.methods import Methods, Source
from tests.reliability.plugins import BROKEN, GOOD, WORKS, install
from tests.reliability.promises import amount

SLOWER_S = 1.0
"""What a broken plugin may cost a command, on an idle machine."""


def quantkit(*arguments: str, site: Path | None = None) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a command with a folder of installed plugins on the path; return it and its seconds."""
    environment = {**os.environ, "PYTHONPATH": str(site or ""), "PYTHONDONTWRITEBYTECODE": "1"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "quantkit_tools.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=60,
    )
    return done, time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class Usual:
    """Wall and processor seconds of `quantkit methods` without a plugin of others, just now."""

    wall_s: float
    cpu_s: float

    @property
    def allowed_s(self) -> float:
        """Return how long the command may take with a broken one; a busy machine has more time for the same."""
        return self.wall_s + SLOWER_S * max(1.0, self.wall_s / self.cpu_s)


def usual() -> Usual:
    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = spent()
    _, seconds = quantkit("methods", "--json")
    return Usual(seconds, spent() - before)


def fault_of(how: str, site: Path) -> str:
    """Say what went wrong with one broken plugin; a command that was slow gets two more tries."""
    install(site, how)
    over = 0.0
    for _ in range(3):
        done, seconds = quantkit("methods", "--json", site=site)
        over = seconds - usual().allowed_s
        if over <= 0:
            break
    else:
        return f"took {over:.2f} s longer than allowed"
    if done.returncode != 0:
        return f"exit code {done.returncode}: {done.stderr[-300:]}"
    told = json.loads(done.stdout)
    said = " ".join({**told["broken"], **told["notes"]}.values())
    lacking = [word for word in (BROKEN[how][1], "of toy_plugin 2.5") if word not in said]
    names = [entry["name"] for entry in told["methods"]]
    if lacking or "QLORA" not in names or ("TOY" in names) != (how in WORKS):
        return f"lacks {lacking} in {said!r}; {names}"
    return ""


@pytest.mark.parametrize("share", range(2))
def test_every_broken_plugin_is_named_in_time_and_costs_only_its_method(share: int, tmp_path: Path, figure: Any) -> None:
    cases = list(BROKEN)[share :: amount(4, 2)]
    faults = {how: fault for how in cases if (fault := fault_of(how, tmp_path / how.replace(" ", "-")))}
    assert faults == {}
    figure("R12", len(cases) - len(faults), len(cases))


def test_several_at_once_leave_other_methods_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, how in enumerate(("sleeps", "os._exit", "takes a shipped format", "points to nothing")):
        install(tmp_path, how, f"toy_plugin_{number}")
    monkeypatch.syspath_prepend(str(tmp_path))
    methods = Methods.discover()
    told = methods.broken["TOY"]
    assert [told.count(f"of toy_plugin_{number} 2.5") for number in range(4)] == [1, 1, 1, 1]
    assert methods.claims()["dense"] == "NoQuant"
    assert methods.plan("QLORA", {}, PlanContext()).spec.weights_dtype == "nf4"


def test_a_slow_plugin_gets_more_time_when_its_method_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three seconds of importing are too much for a list and fine for a run."""
    source, _ = BROKEN["prints"]
    install(tmp_path, "prints")
    (tmp_path / "toy_plugin.py").write_text(f"import time\ntime.sleep(3)\n{source}")
    monkeypatch.syspath_prepend(str(tmp_path))
    methods = Methods.discover()
    assert "takes longer than 0.5 s to import (it stood in toy_plugin.py line 2)" in methods.broken["TOY"]
    assert "TOY" not in methods.names
    assert methods.info("toy").summary == "a toy"
    assert methods.broken == {}
    assert methods.names[-1] == "TOY"
    del sys.modules["toy_plugin"]


@pytest.mark.parametrize("fault", ["options.bits", "exit(4)"])
def test_a_plugin_that_fails_while_planning_is_named_in_one_line(fault: str) -> None:
    plugin = ModuleType("toy_plugin")
    hook = f"\n@hookimpl\ndef build_quantization_plan(options, context):\n    return {fault}\n"
    exec(GOOD + hook, vars(plugin))
    methods = Methods()
    methods.register(plugin, Source("TOY", "toys 2.5"))
    with pytest.raises(PluginError, match=r"plugin 'TOY' of toys 2\.5: build_quantization_plan raised ") as raised:
        methods.plan("TOY", {}, PlanContext())
    assert "\n" not in str(raised.value)
