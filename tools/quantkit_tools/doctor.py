"""Will it work here, and what does one paste into an issue? (`quantkit doctor`)

Composed of `quantkit.doctor` and what `quantkit methods` knows; the answer takes a second and imports no torch. What only shows
when it is tried costs `--deep`, about ten seconds.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit import console
from quantkit.doctor import SEVERITIES, Finding
from quantkit.doctor.libraries import installed, judge_libraries, versions_of
from quantkit.doctor.machine import Machine, judge_machine, read_machine
from quantkit.doctor.pairs import judge_pairs
from quantkit.doctor.places import Place, judge_places, read_places, settings
from quantkit.doctor.trials import Trial, judge_trials, run_trials
from quantkit.errors import VerificationError
from quantkit.layout import format_bytes
from quantkit.methods import Methods, installed_methods
from quantkit_registry.store import default_root
from quantkit_tools.methods import describe_method, device_types
from quantkit_tools.small_flags import read_small_flags

FENCE = "```"


@dataclass(frozen=True)
class Flags:
    """Say what will break in this environment, and describe it for an issue; exit code 3 when something will."""

    deep: bool = False
    """Also try what only shows then: imports, a LoRA layer, bitsandbytes on this CPU, the GPU (ten seconds, in processes of
    their own)."""
    json: bool = False
    """Print one JSON object; human text goes to stderr."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """All that was looked at, and what is wrong with it."""

    machine: Machine
    versions: dict[str, str]
    settings: dict[str, str]
    places: list[Place]
    methods: list[dict[str, Any]]
    broken_plugins: dict[str, str]
    trials: list[Trial] | None
    findings: list[Finding]

    @property
    def breaks(self) -> list[Finding]:
        """Return what will fail."""
        return [finding for finding in self.findings if finding.severity == "breaks"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "machine": self.machine.to_dict(),
            "versions": self.versions,
            "settings": self.settings,
            "places": [place.to_dict() for place in self.places],
            "methods": [{key: entry[key] for key in ("name", "usable", "why_not", "missing")} for entry in self.methods],
            "broken_plugins": self.broken_plugins,
            "trials": None if self.trials is None else [trial.to_dict() for trial in self.trials],
            "findings": [finding.to_dict() for finding in self.findings],
            "breaks": len(self.breaks),
        }


def main(arguments: list[str]) -> int:
    """Run `quantkit doctor [--deep] [--json]`."""
    flags = read_small_flags(Flags, "doctor", arguments)
    if flags.json:
        console.use_stderr()
    found = examine(installed_methods(), deep=flags.deep)
    if flags.json:
        console.emit_json(found.to_dict())
    else:
        show(found)
    return VerificationError.exit_code if found.breaks else 0


def examine(methods: Methods, *, deep: bool = False) -> Examination:
    """Look everywhere; with `deep`, try what only shows then."""
    libraries = installed()
    versions = {"python": sys.version.split()[0]} | versions_of(libraries)
    machine = read_machine()
    places = read_places(default_root())
    devices = device_types()
    trials = run_trials() if deep else None
    broken = dict(methods.broken)
    findings = [
        *judge_libraries(libraries),
        *judge_pairs(versions, flags=machine.flags, has_gpu=devices[0] != "cpu"),
        *(_broken_plugin(name, reason) for name, reason in sorted(broken.items())),
        *(_noted_plugin(name, note) for name, note in sorted(methods.notes.items())),
        *judge_machine(machine, torch_version=versions.get("torch"), threads=os.environ.get("OMP_NUM_THREADS")),
        *judge_places(places),
        *judge_trials(trials or []),
    ]
    return Examination(
        machine=machine,
        versions=versions,
        settings=settings(),
        places=places,
        methods=[describe_method(methods, name, devices) for name in methods.names],
        broken_plugins=broken,
        trials=trials,
        findings=sorted(findings, key=lambda finding: finding.severity != "breaks"),
    )


def block(found: Examination) -> str:
    """Return the environment as one block of text for an issue; the home folder is written `~`."""
    usable = [entry["name"] for entry in found.methods if entry["usable"]]
    lacking = [entry for entry in found.methods if not entry["usable"]]
    unusable = [f"{entry['name']} ({', '.join(entry['missing']) or entry['why_not']})" for entry in lacking]
    facts = [
        ("versions", ", ".join(f"{name} {version}" for name, version in found.versions.items())),
        *found.machine.lines(),
        ("methods", f"{', '.join(usable)}{'; not usable: ' if unusable else ''}{', '.join(unusable)}"),
        *((place.name, _place_text(place)) for place in found.places),
        ("settings", ", ".join(f"{name}={value}" for name, value in found.settings.items()) or "none"),
        *(("tried", f"{trial.name}: {trial.outcome}: {trial.detail}") for trial in found.trials or []),
        *(
            (name, "; ".join(about))
            for name in SEVERITIES
            if (about := dict.fromkeys(f.subject for f in found.findings if f.severity == name))
        ),
    ]
    width = max(len(name) for name, _ in facts)
    home = str(Path.home())
    lines = [f"{name:<{width}}  {text}" for name, text in facts]
    return "\n".join([f"{FENCE}text", *(line.replace(home, "~") if len(home) > 1 else line for line in lines), FENCE])


def show(found: Examination) -> None:
    """Print the block, then what to do about what was found."""
    console.say(block(found))
    missing = [[entry["name"], _install(entry)] for entry in found.methods if not entry["usable"]]
    if missing:
        console.table("Methods that are not usable here", ["method", "what it takes"], missing)
    for severity, title in (("breaks", "Will break"), ("beware", "Beware")):
        findings = [finding for finding in found.findings if finding.severity == severity]
        if findings:
            console.say(f"\n{title}", style="bold")
        for finding in findings:
            console.say(f"- {finding.subject}: {finding.what}")
            console.say(f"  what to do: {finding.advice}")
            console.say(f"  source: {finding.source or 'seen here'}", style="dim")
    console.say("")
    untried = "" if found.trials is not None else "; --deep also tries imports, LoRA and bitsandbytes"
    if found.breaks:
        console.warn(f"{len(found.breaks)} of these will break something{untried}")
    else:
        console.say(f"nothing was found that will break{untried}", style="bold")


def _broken_plugin(name: str, reason: str) -> Finding:
    return Finding(
        severity="breaks",
        subject=f"plugin {name}",
        what=reason,
        advice=f"repair or uninstall it, or set QUANTKIT_DISABLE_PLUGINS={name}; every other method works without it",
    )


def _noted_plugin(name: str, note: str) -> Finding:
    advice = "nothing is wrong with its method; tell its author"
    return Finding(severity="beware", subject=f"plugin {name}", what=note, advice=advice)


def _install(entry: dict[str, Any]) -> str:
    """Return what makes a method usable, as one would type it where pip can."""
    needs = " ".join(f'"{text.partition(" (")[0]}"' for text in entry["missing"])
    return f"pip install {needs}" if needs else str(entry["why_not"])


def _place_text(place: Place) -> str:
    state = "" if place.exists else " (not there yet)"
    return f"{place.path}{state}, {'writable' if place.writable else 'not writable'}, {format_bytes(place.free_bytes)} free"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
