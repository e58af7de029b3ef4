"""Which plugins are there, and do they keep the rules of the hooks?

Plugins are found by entry point. One that does not import, or breaks a rule, costs only its own method: the reason is kept
and told when that method is asked for. pluggy alone would let one broken plugin take down every command. Plugins of others are
tried in a process of their own first (`quantkit.probing`).
"""

import os
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Self

import pluggy

from quantkit import hookspecs
from quantkit.declarations import fault_in
from quantkit.errors import PluginError, did_you_mean
from quantkit.plan import MethodInfo
from quantkit.probing import LONG_PATIENCE_S, VARIABLE, Candidate, Probe, quietly, start_probe

GROUP = "quantkit"
SHIPPED = "quantkit_plugins."
"""What the entry points of quantkit's own plugins begin with."""
DISABLE_VARIABLE = "QUANTKIT_DISABLE_PLUGINS"
DISPATCHED = (
    "build_quantization_plan",
    "load_kwargs",
    "quantize_model",
    "prepare_model",
    "post_train_merge",
    "export_model",
)
"""Hooks that only the owner of a method implements."""
DECLARED = ("declare_method", "declare_tasks", "declare_exports")
"""Hooks that any plugin may implement."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a plugin comes from."""

    plugin: str
    distribution: str

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} of {self.distribution}"


class Plugins:
    """The plugins of this environment, each checked when it is registered."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._infos: dict[str, MethodInfo] = {}
        self._sources: dict[str, Source] = {}
        self._owners: dict[str, Any] = {}
        self._registered: list[tuple[Any, Source]] = []
        self.broken: dict[str, str] = {}
        """Plugin name to the reason why its method is not available."""
        self.notes: dict[str, str] = {}
        """Plugin name to what it does that it should not, but that costs nobody anything."""
        self._late: dict[str, EntryPoint] = {}

    @classmethod
    def discover(cls) -> Self:
        """Load every installed plugin of the entry-point group `quantkit` but those named in QUANTKIT_DISABLE_PLUGINS.

        Raises:
            PluginError: a plugin asks for the methods while it is imported itself.
        """
        if os.environ.get(VARIABLE):
            raise PluginError("a plugin asks for the installed methods while it is imported; ask in a hook")
        disabled = {name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(",") if name.strip()}
        methods = cls()
        by_value = {(point.name, point.value): point for point in entry_points(group=GROUP)}
        points = [
            point
            for point in sorted(by_value.values(), key=_shipped_first)
            if point.name not in disabled and (point.dist is None or point.dist.name not in disabled)
        ]
        probes = [(point, start_probe(_candidate(point))) for point in points if not _shipped(point)]
        for point in points:
            if _shipped(point):
                methods._load(point)
        for point, probe in probes:
            methods._load_probed(point, probe)
        return methods

    def fault_of(self, candidate: Candidate) -> str:
        """Import and register one plugin; return what is wrong with it, or an empty string."""
        source = Source(candidate.name, candidate.distribution)
        try:
            plugin = EntryPoint(candidate.name, candidate.value, GROUP).load()
        except SystemExit as error:
            return f"{source} calls sys.exit({error.code!r}) when it is imported"
        except BaseException as error:
            said = " ".join(str(error).split())[:300]
            return f"{source} does not import: {type(error).__name__}: {said}"
        return self._fault_of_registering(plugin, source)

    def _load(self, point: EntryPoint) -> None:
        if fault := self.fault_of(_candidate(point)):
            self._break(point.name, fault)

    def _load_probed(self, point: EntryPoint, probe: Probe) -> None:
        """Import a plugin of others if it came through elsewhere."""
        candidate, answer = probe.candidate, probe.answer()
        source = Source(candidate.name, candidate.distribution)
        if answer.fault:
            self._break(point.name, answer.fault if answer.fault.startswith(str(source)) else f"{source} {answer.fault}")
            if answer.late:
                self._late[point.name] = point
            return
        if answer.printed:
            self.notes[point.name] = f"{source} prints {answer.printed} bytes when it is imported; they go to stderr"
        with quietly():
            self._load(point)

    def _load_late(self, name: str) -> None:
        """Give a plugin that took too long more time, now that it is asked for."""
        point = self._late.pop(name)
        del self.broken[name]
        self._load_probed(point, start_probe(_candidate(point), LONG_PATIENCE_S))
        self._late.pop(name, None)

    def _break(self, name: str, fault: str) -> None:
        """Keep a reason, beside that of another plugin of this name."""
        known = self.broken.get(name, fault)
        self.broken[name] = known if known == fault or fault in known else f"{known}; {fault}"

    def register(self, plugin: Any, source: Source) -> None:
        """Add one plugin (a module or object with hook implementations); what is wrong with it goes to `broken`."""
        if fault := self._fault_of_registering(plugin, source):
            self._break(source.plugin, fault)

    def _fault_of_registering(self, plugin: Any, source: Source) -> str:
        if self._manager.is_registered(plugin):
            return f"{source} is the same module as another plugin"
        name = f"{source.plugin} ({source.distribution})"
        try:
            self._manager.register(plugin, name=name)
            self._check_hook_names(plugin, source)
            info = self._declared(plugin, source)
            if info is None:
                self._check_only_wraps(plugin, source)
            else:
                self._add(plugin, source, info)
            self._registered.append((plugin, source))
        except (Exception, SystemExit) as error:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            said = " ".join(str(error).split())
            return said if isinstance(error, PluginError) else f"{source}: {type(error).__name__}: {said}"
        return ""

    def _check_hook_names(self, plugin: Any, source: Source) -> None:
        for caller in self._manager.get_hookcallers(plugin) or []:
            if not caller.has_spec():
                known = [name for name in vars(hookspecs) if name in (*DISPATCHED, *DECLARED)]
                raise PluginError(f"{source} implements the unknown hook {caller.name!r}.{did_you_mean(caller.name, known)}")

    def _declared(self, plugin: Any, source: Source) -> MethodInfo | None:
        others = [other for other in self._manager.get_plugins() if other is not plugin]
        answers = self._manager.subset_hook_caller("declare_method", remove_plugins=others)()
        if not answers:
            return None
        info: MethodInfo = answers[0]
        if fault := fault_in(info):
            raise PluginError(f"{source}: {fault}")
        if info.name != source.plugin:
            raise PluginError(
                f"{source} declares the method {info.name!r}; its entry point must have the same name, not {source.plugin!r}"
            )
        return info

    def _check_only_wraps(self, plugin: Any, source: Source) -> None:
        for caller in self._manager.get_hookcallers(plugin) or []:
            if caller.name in DECLARED:
                continue
            for implementation in caller.get_hookimpls():
                if implementation.plugin is plugin and not (implementation.wrapper or implementation.hookwrapper):
                    raise PluginError(
                        f"{source} owns no method, so its {caller.name} may only wrap: mark it @hookimpl(wrapper=True),"
                        " or add declare_method"
                    )

    def _add(self, plugin: Any, source: Source, info: MethodInfo) -> None:
        for known, other in self._sources.items():
            if known.lower() == info.name.lower():
                raise PluginError(
                    f"two plugins own the method {info.name!r}: {other} and {source}; the first is used. Uninstall one or set"
                    f" {DISABLE_VARIABLE} to its distribution"
                )
        for kind in info.claims:
            if owner := next((name for name, known in self._infos.items() if kind in known.claims), None):
                raise PluginError(f"{source} claims {kind} checkpoints, which {owner} of {self._sources[owner]} reads")
        self._infos[info.name] = info
        self._sources[info.name] = source
        self._owners[info.name] = plugin


def _candidate(point: EntryPoint) -> Candidate:
    dist = point.dist
    return Candidate(point.name, point.value, f"{dist.name} {dist.version}" if dist else "an unknown distribution")


def _shipped(point: EntryPoint) -> bool:
    return point.dist is not None and point.dist.name == "quantkit" and point.value.startswith(SHIPPED)


def _shipped_first(point: EntryPoint) -> tuple[bool, str, str]:
    return (not _shipped(point), point.dist.name if point.dist else "", point.name)
