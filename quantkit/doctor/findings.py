"""In which words is something wrong reported? What, where it shows, what to do, and on whose word."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Severity = Literal["breaks", "beware"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""`breaks`: something that quantkit does will fail here; `beware`: quantkit copes with it, or it concerns only some uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong, or may go wrong."""

    severity: Severity
    subject: str
    """What it is about: packages, a folder, a plugin, a device."""
    what: str
    """What was found, or what happens."""
    advice: str
    """What to do."""
    source: str = ""
    """Where it is described, or how it was measured; empty where it was seen here."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)
