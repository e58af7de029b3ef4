"""Which methods exist, and who answers a hook? The only caller of hooks.

`Methods` is a typed front over pluggy: it discovers plugins by entry point, dispatches each hook to the plugin that owns
the plan's method (`subset_hook_caller`, as pytest dispatches to conftest files), and checks what comes back. The
alternative, an `if method == …` at the top of every implementation, forgets one of them sooner or later.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from quantkit.calibration import Calibration, QuantizationWork
from quantkit.discovery import DISPATCHED, Plugins, Source
from quantkit.errors import PluginError, QuantkitError, UnknownMethodError, UsageError, did_you_mean
from quantkit.options import build_options
from quantkit.plan import MethodInfo, PlanContext, QuantizationPlan, Stage
from quantkit.shared_hooks import fold_into_dense

__all__ = ["DISPATCHED", "Methods", "Source", "installed_methods", "require_usable"]

PLANNING = ("build_quantization_plan", "load_kwargs")
"""Hooks that touch no model: what else than quantkit's errors they raise is a fault of the plugin."""
VERA_NOTE = "VeRa has no alpha: lora_alpha has no effect, d_initial 0.1 sets the scale."


class Methods(Plugins):
    """The methods that can be named in `QUANT_METHOD`, by plugin.

    A plugin that does not import, or breaks a rule of the hooks, costs only its own method: it is listed in `broken`, and
    the reason is told when that method is asked for.
    """

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
                if plugin in self._late:
                    self._load_late(plugin)
                    return self.info(name)
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

    def wants_calibration(self, plan: QuantizationPlan) -> bool:
        """Return whether `quantize_model` of this plan reads calibration data; `options["calibrated"]` decides where it may."""
        need = self.info(plan.method).calibration
        return need == "required" or (need == "optional" and bool(plan.options.get("calibrated")))

    def declared_tasks(self) -> list[tuple[Source, Any]]:
        """Return what each plugin that implements `declare_tasks` answers, or the exception it raises; nothing is checked."""
        return self._declared_by_each("declare_tasks")

    def declared_exports(self) -> list[tuple[Source, Any]]:
        """Return what each plugin that implements `declare_exports` answers, or the exception it raises; nothing is checked."""
        return self._declared_by_each("declare_exports")

    def implements(self, name: str, hook: str) -> bool:
        """Whether the owner of a method implements a hook."""
        return hasattr(self._owners[self.info(name).name], hook)

    def folds_exactly(self, name: str) -> bool:
        """Whether adapters of a method are folded in as `quantkit.merging` does, so that no model is needed for it.

        Its owner takes `shared_hooks.fold_into_dense`, and nobody's wrapper wants to see the hook.
        """
        wrapped = any(hook.wrapper or hook.hookwrapper for hook in self._manager.hook.post_train_merge.get_hookimpls())
        return not wrapped and getattr(self._owners[self.info(name).name], "post_train_merge", None) is fold_into_dense

    def _declared_by_each(self, hook: str) -> list[tuple[Source, Any]]:
        answers: list[tuple[Source, Any]] = []
        for plugin, source in self._registered:
            others = [other for other in self._manager.get_plugins() if other is not plugin]
            caller = self._manager.subset_hook_caller(hook, remove_plugins=others)
            if caller.get_hookimpls():
                try:
                    answers += [(source, answer) for answer in caller()]
                except Exception as error:
                    answers.append((source, error))
        return answers

    def load_kwargs(self, plan: QuantizationPlan) -> dict[str, Any]:
        """Return what `from_pretrained` of the base needs; empty where the method has nothing to say."""
        answer = self._call("load_kwargs", plan.method, plan=plan)
        if answer is None:
            return {}
        if not isinstance(answer, dict):
            raise PluginError(f"{self.source(plan.method)}: load_kwargs returned {type(answer).__name__}, not a dict")
        return answer

    def quantize_model(
        self,
        plan: QuantizationPlan,
        model: Any,
        calibration: Calibration | None = None,
        work: QuantizationWork | None = None,
    ) -> Any:
        """Quantize a dense model; returned unchanged where the method quantizes while loading.

        Raises:
            UsageError: the method wants calibration data and got none.
        """
        if calibration is None and self.wants_calibration(plan):
            raise UsageError(f"{plan.method} quantizes with calibration data; none was given")
        return self._model_hook("quantize_model", plan, model, calibration=calibration, work=work or QuantizationWork())

    def prepare_model(self, plan: QuantizationPlan, model: Any) -> Any:
        """Make a loaded base ready to train on."""
        return self._model_hook("prepare_model", plan, model)

    def post_train_merge(self, plan: QuantizationPlan, model: Any) -> Any:
        """Fold adapters into the (dequantized) base they were trained on and return the dense model."""
        return self._model_hook("post_train_merge", plan, model)

    def export_model(self, plan: QuantizationPlan, model: Any, target: str) -> Any:
        """Put a loaded model of the method's own storage format into that of a target (`quantkit.exporting`)."""
        return self._model_hook("export_model", plan, model, target=target)

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
        caller = self._manager.subset_hook_caller(hook, remove_plugins=others)
        if hook not in PLANNING:
            return caller(**arguments)
        try:
            return caller(**arguments)
        except QuantkitError:
            raise
        except (Exception, SystemExit) as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise PluginError(f"{self._sources[self.info(name).name]}: {hook} raised {said}") from error


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
