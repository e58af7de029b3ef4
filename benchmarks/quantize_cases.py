"""What is compared? Every method at every width, and what the peers offer for the same.

Methods run with their own defaults; only bits and group size are set, alike for all. Tuning ours here and leaving the
peers at their defaults would compare the tuning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OURS = "quantkit"
GROUP_SIZE = 64
WIDTHS = (4, 8, 3, 2)
"""In the order of measuring."""
INTEGERS: dict[str, tuple[str, dict[str, Any]]] = {
    "RTN": ("RTN", {}),
    "RTN, zero points": ("RTN", {"symmetric": False}),
    "GPTQ": ("GPTQ", {}),
    "AWQ": ("AWQ", {}),
    "HQQ": ("HQQ", {}),
    "QuaRot": ("QuaRot", {}),
    "AdaRound": ("AdaRound", {}),
    "BRECQ": ("BRECQ", {}),
}
"""Name in the table → method and options; each at 4, 3 and 2 bits."""
FIXED: dict[str, tuple[int, str, dict[str, Any]]] = {
    "NF4": (4, "BNB4BIT", {}),
    "NF4, calibrated": (4, "BNB4BIT", {"calibrated": True}),
    "FP4": (4, "BNB4BIT", {"quant_type": "fp4"}),
    "FP4, calibrated": (4, "BNB4BIT", {"quant_type": "fp4", "calibrated": True}),
    "AutoRound, 20 steps": (4, "AutoRound", {"weights_bits": 4, "group_size": GROUP_SIZE, "iterations": 20}),
    "TorchAO": (4, "TorchAO", {"weights_bits": 4, "group_size": GROUP_SIZE}),
    "W8A8": (8, "DynamicINT8", {}),
    "SmoothQuant": (8, "SmoothQuant", {}),
    "INT8": (8, "INT8", {}),
    "TorchAO, 8 bits": (8, "TorchAO", {}),
    "FP8": (8, "FP8", {}),
    "FP8, activations too": (8, "FP8", {"activations_bits": 8}),
}
"""Name in the table → bits, method and options of those with one width."""
PEERS: dict[str, dict[str, tuple[int, ...]]] = {
    "llmcompressor": {
        "RTN": (4, 3, 2),
        "GPTQ": (4, 3, 2),
        "AWQ": (4,),
        "W8A8": (8,),
        "SmoothQuant": (8,),
        "SmoothQuant 0.8": (8,),
    },
    "gptqmodel": {"GPTQ": (4, 3, 2), "AWQ": (4,)},
    "hqq": {"HQQ": (4, 3, 2)},
    "autoround": {"RTN": (4, 3, 2), "AutoRound, 20 steps": (4,)},
}
"""Peer → its methods → bits."""
SLOW = {("gptqmodel", "AWQ"), ("autoround", "AutoRound, 20 steps"), (OURS, "AutoRound, 20 steps")}
"""Cases that no goal is about and that may take most of an hour: measured last."""
QUICK = ("RTN", "GPTQ")


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    by: str
    """`quantkit`, or a peer."""
    method: str
    """Name in the table."""
    weights_bits: int
    plugin: str = ""
    """The method's name in `quantkit methods`; empty for a peer's."""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return what stands for it in files and comparisons."""
        return f"{self.by} {self.method} {self.weights_bits}"


def all_cases(bits: Sequence[int], methods: Sequence[str] | None, peers: Sequence[str]) -> list[Case]:
    """Return every case, width by width in the order of `bits`, ours before the peers', the slowest at the end."""
    cases = [*own_cases(bits, methods), *peer_cases(peers, bits, methods)]
    return sorted(cases, key=lambda case: ((case.by, case.method) in SLOW, bits.index(case.weights_bits)))


def own_cases(bits: Sequence[int], methods: Sequence[str] | None) -> list[Case]:
    """Return our cases at these widths; `methods` are names in the table, or of methods with all their rows; None: all."""
    cases = [
        Case(OURS, name, width, plugin, options | {"weights_bits": width, "group_size": GROUP_SIZE})
        for width in (4, 3, 2)
        for name, (plugin, options) in INTEGERS.items()
    ]
    cases += [Case(OURS, name, width, plugin, options) for name, (width, plugin, options) in FIXED.items()]
    listed = {*INTEGERS, *FIXED}
    plugins = set(methods or ()) - listed
    wanted = [case for case in cases if methods is None or case.method in methods or case.plugin in plugins]
    return [case for case in wanted if case.weights_bits in bits]


def peer_cases(peers: Sequence[str], bits: Sequence[int], methods: Sequence[str] | None) -> list[Case]:
    """Return the peers' cases at these widths."""
    return [
        Case(peer, method, width)
        for peer in peers
        for method, widths in PEERS[peer].items()
        for width in widths
        if width in bits and (methods is None or method in methods)
    ]
