"""Does a plugin of others come through its own import? Asked in a process of its own, before this one imports it.

A module that hangs, exits, aborts, starts threads or prints when it is imported would do so in every command. Importing it
only when its method is asked for, the alternative, leaves `quantkit methods`, the flags of all methods and wrapping plugins
without an answer. What ships with quantkit is imported at once and pays nothing.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 0.5
"""Seconds that an import may take while all plugins are listed, on an idle machine; more where the machine is busy."""
LONG_PATIENCE_S = 30.0
"""Seconds that it may take when its own method is asked for by name."""
GIVEN_UP_S = 10.0
"""Seconds after which a process that does not end by itself is ended."""
VARIABLE = "QUANTKIT_PROBING"
"""Set while a plugin of others is imported: there plugins are not looked for again."""
LATE = "Timeout ("
"""How `faulthandler` begins when time is up."""
BOOT = (
    "import json, sys, time; began = time.perf_counter(); given = json.loads(sys.argv[1]); sys.path[:] = given['path'];"
    " from quantkit.probed import answer; answer(given, began)"
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An entry point of others: its name, what it points to, and the distribution's name and version."""

    name: str
    value: str
    distribution: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a plugin in a process of its own."""

    fault: str = ""
    """Why it must not be imported here; empty where it may."""
    late: bool = False
    """Whether it took too long rather than failed."""
    printed: int = 0
    """Bytes it wrote to stdout while it was imported."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A candidate being imported elsewhere."""

    candidate: Candidate
    process: "subprocess.Popen[str]"
    patience_s: float

    def answer(self) -> Answer:
        """Wait for the process, end whatever it left running, and return what it said."""
        try:
            code: int | None = self.process.wait(self.patience_s + GIVEN_UP_S)
        except subprocess.TimeoutExpired:
            code = None
        _end(self.process)
        assert self.process.stdout is not None
        said = self.process.stdout.read(1 << 20)
        self.process.stdout.close()
        if code is None or said.startswith(LATE):
            return Answer(
                f"takes longer than {self.patience_s:g} s to import{_place(said)}; import heavy things in hooks", True
            )
        if not said:
            return Answer(f"ends the process when it is imported ({_how(code)})")
        return Answer(**json.loads(said))


def start_probe(candidate: Candidate, patience_s: float = PATIENCE_S) -> Probe:
    """Begin to import a plugin in a process of its own."""
    given = {"path": sys.path, "patience_s": patience_s, "name": candidate.name, "value": candidate.value}
    process = subprocess.Popen(
        [sys.executable, "-c", BOOT, json.dumps(given | {"distribution": candidate.distribution})],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, VARIABLE: "1"},
        text=True,
        errors="replace",
        start_new_session=True,
    )
    return Probe(candidate, process, patience_s)


@contextmanager
def quietly() -> Iterator[None]:
    """Send what is written to stdout within, by Python or below it, to stderr; plugins are not looked for within."""
    sys.stdout.flush()
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before})


def _end(process: "subprocess.Popen[str]") -> None:
    """End a process and those it started."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"


def _place(said: str) -> str:
    """Return the file and line where an import stood when its time was up, in the plugin if possible."""
    lines = [line.strip() for line in said.splitlines() if line.strip().startswith("File ")]
    outside = [line for line in lines if "<frozen" not in line and Path(__file__).parent.name not in line.split('"')[1]]
    place = (outside or lines or [""])[0].split('"')
    line = place[2].removeprefix(", ").partition(" in ")[0] if len(place) > 2 else ""
    return f" (it stood in {Path(place[1]).name} {line})" if line else ""
