"""Which methods exist, and who answers a hook? The only caller of hooks.

`Methods` is a typed front over pluggy: it discovers plugins by entry point, dispatches each hook to the plugin that owns
the plan's method (`subset_hook_caller`, as pytest dispatches to conftest files), and checks what comes back. The
alternative, an `if method == …` at the top of every implementation, forgets one of them sooner or later.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any, Self

import pluggy

from quantkit import hookspecs
from quantkit.errors import PluginError, UnknownMethodError, UsageError, did_you_mean
from quantkit.options import build_options
from quantkit.plan import MethodInfo, PlanContext, QuantizationPlan, Stage

GROUP = "quantkit"
DISABLE_VARIABLE = "QUANTKIT_DISABLE_PLUGINS"
VERA_NOTE = "VeRa has no alpha: lora_alpha has no effect, d_initial 0.1 sets the scale."
DISPATCHED = ("build_quantization_plan", "load_kwargs", "quantize_model", "prepare_model", "post_train_merge")
"""Hooks that only the owner of a method implements."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a plugin comes from."""

    plugin: str
    distribution: str

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} of {self.distribution}"


class Methods:
    """The methods that can be named in `QUANT_METHOD`, by plugin.

    A plugin that does not import, or breaks a rule of the hooks, costs only its own method: it is listed in `broken`, and
    the reason is told when that method is asked for.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._infos: dict[str, MethodInfo] = {}
        self._sources: dict[str, Source] = {}
        self._owners: dict[str, Any] = {}
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
        except Exception as error:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            said = str(error) if isinstance(error, PluginError) else f"{source}: {type(error).__name__}: {error}"
            self.broken[source.plugin] = said

    def _check_hook_names(self, plugin: Any, source: Source) -> None:
        for caller in self._manager.get_hookcallers(plugin) or []:
            if not caller.has_spec():
                known = [name for name in vars(hookspecs) if name in (*DISPATCHED, "declare_method")]
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

    @property
    def names(self) -> tuple[str, ...]:
        """Every method that can be asked for, in the order of discovery."""
        return tuple(self._infos)

    def info(self, name: str) -> MethodInfo:
        """Return what the owner of a method declared; upper and lower case do not matter.

        Raises:
            UnknownMethodError: no plugin owns it; the text says whether a broken plugin would have.
        """
        for known, info in self._infos.items():
            if known.lower() == str(name).lower():
                return info
        for plugin, reason in self.broken.items():
            if plugin.lower() == str(name).lower():
                raise UnknownMethodError(f"method {name!r} is not available: {reason}")
        raise UnknownMethodError(
            f"no method is called {name!r}.{did_you_mean(str(name), self.names)} Known: {', '.join(self.names)}."
        )

    def source(self, name: str) -> Source:
        """Return the plugin and distribution that own a method."""
        return self._sources[self.info(name).name]

    def missing(self, name: str) -> tuple[str, ...]:
        """Return the method's requirements that this environment does not meet, each with what was found."""
        return tuple(text for need in self.info(name).requirements if (text := _unmet(need)))

    def claims(self) -> dict[str, str]:
        """Return storage kind → the method that bare checkpoints of that kind are read as."""
        return {kind: info.name for info in self._infos.values() for kind in info.claims}

    def options(self, name: str, values: Mapping[str, Any]) -> Any:
        """Return the method's options dataclass, filled from loose values.

        Raises:
            UsageError: an option is unknown or its value does not fit.
        """
        info = self.info(name)
        return build_options(info.options, values, where=f"options of {info.name}")

    def plan(self, name: str, values: Mapping[str, Any], context: PlanContext) -> QuantizationPlan:
        """Ask the owner for its plan and check it: type, method, stage, and every option that is also a spec field.

        Raises:
            UsageError: the method does not work at this stage or carries no such adapter.
            PluginError: the plugin returned something the rules of the hooks do not allow.
        """
        info = self.info(name)
        if context.stage not in info.stages:
            stages = ", ".join(sorted(info.stages))
            raise UsageError(f"{info.name} works at stage {stages}, not at {context.stage.value!r}")
        options = self.options(name, values)
        plan = self._call("build_quantization_plan", info.name, options=options, context=context)
        source = self._sources[info.name]
        if not isinstance(plan, QuantizationPlan):
            raise PluginError(f"{source}: build_quantization_plan returned {type(plan).__name__}, not a QuantizationPlan")
        for what, found, wanted in (
            ("method", plan.method, info.name),
            ("spec.method", plan.spec.method, info.name),
            ("stage", plan.stage, context.stage),
        ):
            if found != wanted:
                raise PluginError(f"{source}: the plan's {what} is {found!r}; asked for was {wanted!r}")
        spec_fields = {item.name for item in fields(plan.spec)}
        for item in fields(options):
            value = getattr(options, item.name)
            if item.name in spec_fields and value is not None and getattr(plan.spec, item.name) != value:
                raise PluginError(
                    f"{source}: the option {item.name} is {value!r} but the plan's spec says {getattr(plan.spec, item.name)!r}"
                )
        return _trainable(plan, info) if plan.stage is Stage.BASE and context.trains else plan

    def load_kwargs(self, plan: QuantizationPlan) -> dict[str, Any]:
        """Return what `from_pretrained` of the base needs; empty where the method has nothing to say."""
        answer = self._call("load_kwargs", plan.method, plan=plan)
        if answer is None:
            return {}
        if not isinstance(answer, dict):
            raise PluginError(f"{self.source(plan.method)}: load_kwargs returned {type(answer).__name__}, not a dict")
        return answer

    def quantize_model(self, plan: QuantizationPlan, model: Any, calibration: Any = None) -> Any:
        """Quantize a dense model; returned unchanged where the method quantizes while loading."""
        return self._model_hook("quantize_model", plan, model, calibration=calibration)

    def prepare_model(self, plan: QuantizationPlan, model: Any) -> Any:
        """Make a loaded base ready to train on."""
        return self._model_hook("prepare_model", plan, model)

    def post_train_merge(self, plan: QuantizationPlan, model: Any) -> Any:
        """Fold adapters into the (dequantized) base they were trained on and return the dense model."""
        return self._model_hook("post_train_merge", plan, model)

    def _model_hook(self, hook: str, plan: QuantizationPlan, model: Any, **more: Any) -> Any:
        from torch import nn

        answer = self._call(hook, plan.method, plan=plan, model=model, **more)
        if answer is None:
            raise PluginError(f"{self.source(plan.method)} does not implement {hook}, or returned None; return the model")
        if not isinstance(answer, nn.Module):
            raise PluginError(f"{self.source(plan.method)}: {hook} returned {type(answer).__name__}, not a model")
        return answer

    def _call(self, hook: str, name: str, **arguments: Any) -> Any:
        owner = self._owners[self.info(name).name]
        others = [plugin for plugin in self._owners.values() if plugin is not owner]
        return self._manager.subset_hook_caller(hook, remove_plugins=others)(**arguments)


def _trainable(plan: QuantizationPlan, info: MethodInfo) -> QuantizationPlan:
    """Return the plan of a training run, with a note on what its adapter leaves out; refuse what cannot be trained."""
    if plan.adapter.kind == "NoPeft" and plan.spec.is_quantized:
        raise UsageError(
            f"PEFT_CONFIG is NoPeft, but {info.name} quantizes the base and quantized weights carry no gradients; train"
            f" adapters ({', '.join(kind for kind in info.adapters if kind != 'NoPeft')}), or all weights with NoQuant"
        )
    if plan.adapter.kind not in info.adapters:
        raise UsageError(f"{info.name} carries the adapters {', '.join(info.adapters)}; PEFT_CONFIG is {plan.adapter.kind!r}")
    return plan.with_changes(notes=(*plan.notes, VERA_NOTE)) if plan.adapter.kind == "VeRa" else plan


def _shipped_first(point: EntryPoint) -> tuple[bool, str, str]:
    return (point.dist is None or point.dist.name != "quantkit", point.dist.name if point.dist else "", "")


def _unmet(need: str) -> str:
    from packaging.requirements import Requirement

    requirement = Requirement(need)
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{need} (not installed)"
    return "" if requirement.specifier.contains(found, prereleases=True) else f"{need} (found {found})"


@cache
def installed_methods() -> Methods:
    """Return the methods of this environment, discovered once per process."""
    return Methods.discover()


def require_usable(methods: Methods, names: Iterable[str], device: str) -> None:
    """Check that each method's requirements are met and that it runs on this device type.

    Raises:
        UsageError: names the method and what is missing.
    """
    for name in names:
        info = methods.info(name)
        if lacking := methods.missing(name):
            raise UsageError(f"{info.name} needs {', '.join(lacking)}; install it with pip")
        if device not in info.devices:
            raise UsageError(f"{info.name} runs on {', '.join(info.devices)}; this machine offers {device!r}")
