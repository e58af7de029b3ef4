"""Four methods with the names and options of the shipped ones, so that tests of settings need no plugin."""

from dataclasses import dataclass
from typing import Any, Literal

from quantkit.hookspecs import hookimpl
from quantkit.methods import Methods, Source
from quantkit.plan import MethodInfo


@dataclass(frozen=True, slots=True)
class NoOptions:
    """No options."""


@dataclass(frozen=True, slots=True)
class FourBitOptions:
    """Options of the 4-bit method."""

    quant_type: Literal["nf4", "fp4"] = "nf4"
    """Grid of the codes."""
    double_quant: bool = False
    """Quantize the scales, too."""
    quant_storage: str = "uint8"
    """Data type that holds the codes."""


@dataclass(frozen=True, slots=True)
class EightBitOptions:
    """Options of the 8-bit method."""

    llm_int8_threshold: float = 6.0
    """Activations above this magnitude stay in 16 bit."""


class _Plugin:
    def __init__(self, info: MethodInfo) -> None:
        self.info = info

    @hookimpl
    def declare_method(self) -> MethodInfo:
        return self.info


def settings_methods(**more: type[Any]) -> Methods:
    """Return NoQuant, QLORA, BNB4BIT and INT8, and `more` methods by name and options class."""
    methods = Methods()
    options = {"NoQuant": NoOptions, "QLORA": NoOptions, "BNB4BIT": FourBitOptions, "INT8": EightBitOptions, **more}
    for name, cls in options.items():
        methods.register(_Plugin(MethodInfo(name, "for tests", cls)), Source(name, "tests 1.0"))
    assert not methods.broken, methods.broken
    return methods
