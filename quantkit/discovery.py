"""Which plugins are there, and do they keep the rules of the hooks?

Plugins are found by entry point. One that does not import, or breaks a rule, costs only its own method: the reason is kept
and told when that method is asked for. pluggy alone would let one broken plugin take down every command.
"""

import os
from dataclasses import dataclass, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Self

import pluggy

from quantkit import hookspecs
from quantkit.errors import PluginError, did_you_mean
from quantkit.plan import MethodInfo

GROUP = "quantkit"
DISABLE_VARIABLE = "QUANTKIT_DISABLE_PLUGINS"
DISPATCHED = ("build_quantization_plan", "load_kwargs", "quantize_model", "prepare_model", "post_train_merge")
"""Hooks that only the owner of a method implements."""
DECLARED = ("declare_method", "declare_tasks")
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

    @classmethod
    def discover(cls) -> Self:
        """Load every installed plugin of the entry-point group `quantkit` but those named in QUANTKIT_DISABLE_PLUGINS."""
        disabled = {name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(",") if name.strip()}
        methods = cls()
        by_value = {(point.name, point.value): point for point in entry_points(group=GROUP)}
        for point in sorted(by_value.values(), key=_shipped_first):
            if point.name not in disabled and (point.dist is None or point.dist.name not in disabled):
                methods._load(point)
        return methods

    def _load(self, point: EntryPoint) -> None:
        source = Source(point.name, f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution")
        try:
            plugin = point.load()
        except Exception as error:
            self.broken[point.name] = f"{source} does not import: {type(error).__name__}: {error}"
            return
        self.register(plugin, source)

    def register(self, plugin: Any, source: Source) -> None:
        """Add one plugin (a module or object with hook implementations); what is wrong with it goes to `broken`."""
        if self._manager.is_registered(plugin):
            self.broken[source.plugin] = f"{source} is the same module as another plugin"
            return
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
        except Exception as error:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            said = str(error) if isinstance(error, PluginError) else f"{source}: {type(error).__name__}: {error}"
            self.broken[source.plugin] = said

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
        info = answers[0]
        if not isinstance(info, MethodInfo):
            raise PluginError(f"{source}: declare_method returned {type(info).__name__}, not a MethodInfo")
        if not is_dataclass(info.options) or not isinstance(info.options, type):
            raise PluginError(f"{source}: MethodInfo.options of {info.name} is {info.options!r}, not a dataclass")
        if not info.stages:
            raise PluginError(f"{source}: MethodInfo.stages of {info.name} is empty")
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
        self._infos[info.name] = info
        self._sources[info.name] = source
        self._owners[info.name] = plugin


def _shipped_first(point: EntryPoint) -> tuple[bool, str, str]:
    return (point.dist is None or point.dist.name != "quantkit", point.dist.name if point.dist else "", "")
