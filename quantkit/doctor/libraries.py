"""Which libraries are installed, and does each find the versions of the others that it asks for?

Read from package metadata, so that a library that cannot be imported is described all the same. `pip check` would say the
same of every package on the machine, and of none whether quantkit uses it.
"""

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, distributions

from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from quantkit.doctor.findings import Finding
from quantkit.environment import PACKAGES

ROOTS = (
    *PACKAGES,
    "datasets",
    "tokenizers",
    "huggingface-hub",
    "numpy",
    "pyarrow",
    "gguf",
    "lm-eval",
    "llmcompressor",
    "gptqmodel",
    "autoawq",
    "hqq",
    "optimum",
    "optimum-quanto",
    "trl",
    "vllm",
    "vllm-gguf-plugin",
    "flash-attn",
    "triton",
    "torchvision",
    "kernels",
)
"""Packages that are named in a report where they are installed, and whose own requirements are looked at."""


def installed() -> dict[str, list[Distribution]]:
    """Return canonical name → distributions of that name, in the order in which Python finds them."""
    found: dict[str, list[Distribution]] = {}
    for distribution in distributions():
        name = distribution.metadata["Name"] if distribution.metadata is not None else None
        if name:
            found.setdefault(canonicalize_name(name), []).append(distribution)
    return found


def versions_of(found: Mapping[str, list[Distribution]]) -> dict[str, str]:
    """Return the versions of `ROOTS`, under their names there."""
    return {name: found[key][0].version for name in ROOTS if (key := canonicalize_name(name)) in found}


def judge_libraries(found: Mapping[str, list[Distribution]]) -> list[Finding]:
    """Return requirements that are not met, quantkit's own first, and packages of which two versions are installed."""
    findings = []
    for name in ROOTS:
        for distribution in found.get(canonicalize_name(name), [])[:1]:
            for need, here in _unmet(distribution, found):
                findings.append(
                    Finding(
                        severity="breaks" if name == "quantkit" else "beware",
                        subject=f"{name}, {need.name}",
                        what=f"{name} {distribution.version} asks for {need}; {here}",
                        advice=f'pip install "{need.name}{need.specifier}"' if need.specifier else f"pip install {need.name}",
                    )
                )
    for name in (canonicalize_name(name) for name in ROOTS):
        versions = sorted({item.version for item in found.get(name, [])})
        if len(versions) > 1:
            findings.append(
                Finding(
                    severity="beware",
                    subject=name,
                    what=f"versions {' and '.join(versions)} are installed at once; which is imported depends on the path",
                    advice=f"pip uninstall {name} until none is left, then install it once",
                )
            )
    return findings


def satisfies(version: str, specifier: str) -> bool:
    """Whether a version fits a specifier, pre-releases and local versions included.

    >>> satisfies("2.13.0+cpu", ">=2.11"), satisfies("0.18.0", "<0.18")
    (True, False)
    """
    return Requirement(f"x{specifier}").specifier.contains(version, prereleases=True)


def _unmet(distribution: Distribution, found: Mapping[str, list[Distribution]]) -> Iterator[tuple[Requirement, str]]:
    for text in distribution.requires or ():
        try:
            need = Requirement(text)
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
        except (InvalidRequirement, UndefinedEnvironmentName):
            continue
        here = found.get(canonicalize_name(need.name))
        if here is None:
            yield _plain(need), "it is not installed"
        elif not _fits(need, here[0].version):
            yield _plain(need), f"{here[0].version} is installed"


def _fits(need: Requirement, version: str) -> bool:
    try:
        Version(version)
    except InvalidVersion:
        return True
    return need.specifier.contains(version, prereleases=True)


def _plain(need: Requirement) -> Requirement:
    """Return a requirement without extras and markers: as one would type it."""
    return Requirement(re.split(r"[\[;]", f"{need.name}{need.specifier}")[0])
