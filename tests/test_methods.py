"""Does the owner of a method, and no one else, answer its hooks; and does what breaks a rule cost only its own method?"""

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from quantkit import AdapterPlan, MethodInfo, MethodNotes, PlanContext, QuantizationPlan, QuantizationSpec, Stage, hookimpl
from quantkit.errors import PluginError, UnknownMethodError, UsageError
from quantkit.methods import Methods, Source, require_usable
from quantkit.shared_hooks import fold_into_dense

ROOT = Path(__file__).parent.parent
CONTEXT = PlanContext(adapter=AdapterPlan(r=4))


@dataclass(frozen=True)
class Options:
    group_size: int = 64


def spec(**changes: Any) -> QuantizationSpec:
    values = {"weights_bits": 4, "weights_dtype": "int4", "format": "compressed-tensors", "group_size": 64}
    return QuantizationSpec(**({"method": "TOY"} | values | changes))


def toy_plan(**changes: Any) -> QuantizationPlan:
    return replace(QuantizationPlan(method="TOY", stage=Stage.BASE, spec=spec(), adapter=CONTEXT.adapter), **changes)


def plugin(**hooks: Any) -> ModuleType:
    """A plugin that owns TOY; keyword arguments add hooks or replace them, None leaves one out."""

    @hookimpl
    def declare_method():
        return MethodInfo(name="TOY", summary="a toy", options=Options)

    @hookimpl
    def build_quantization_plan(options, context):
        return toy_plan(spec=spec(group_size=options.group_size), stage=context.stage)

    every = {"declare_method": declare_method, "build_quantization_plan": build_quantization_plan} | hooks
    module = ModuleType("toy")
    vars(module).update({name: hook for name, hook in every.items() if hook is not None})
    return module


def toy_info(**changes: Any) -> MethodInfo:
    return MethodInfo(**({"name": "TOY", "summary": "a toy", "options": Options} | changes))


def answering(name: str, answer: Any) -> Any:
    """A hook implementation that takes no arguments and returns `answer`."""
    hook = lambda: answer  # noqa: E731
    hook.__name__ = name
    return hookimpl(hook)


def register(*plugins: Any, name: str = "TOY") -> Methods:
    methods = Methods()
    for number, item in enumerate(plugins):
        methods.register(item, Source(name, f"dist{number} 1.{number}"))
    return methods


def test_a_plugin_owns_the_method_it_declares_whatever_the_case():
    methods = register(plugin())
    assert methods.names == ("TOY",)
    assert methods.info("toy").name == "TOY"
    assert str(methods.source("Toy")) == "plugin 'TOY' of dist0 1.0"


def test_an_unknown_method_is_suggested():
    with pytest.raises(UnknownMethodError, match=r"no method is called 'TOYS'\. Did you mean 'TOY'\? Known: TOY\."):
        register(plugin()).info("TOYS")


def test_a_misspelt_hook_is_named_with_the_one_that_was_meant():
    @hookimpl
    def quantise_model(model):
        return model

    methods = register(plugin(quantise_model=quantise_model))
    text = "plugin 'TOY' of dist0 1.0 implements the unknown hook 'quantise_model'. Did you mean 'quantize_model'?"
    assert methods.broken == {"TOY": text}
    with pytest.raises(UnknownMethodError, match="method 'toy' is not available: plugin 'TOY' of dist0"):
        methods.info("toy")


def test_a_hook_with_an_argument_of_its_own_is_refused():
    @hookimpl
    def prepare_model(model, lora_rank):
        return model

    assert "lora_rank" in register(plugin(prepare_model=prepare_model)).broken["TOY"]


def test_two_owners_of_a_method_are_both_named_and_the_first_stays():
    methods = register(plugin(), plugin())
    assert methods.source("TOY").distribution == "dist0 1.0"
    assert methods.broken["TOY"].startswith(
        "two plugins own the method 'TOY': plugin 'TOY' of dist0 1.0 and plugin 'TOY' of dist1 1.1; the first is used."
    )


def test_the_same_module_twice_is_said():
    item = plugin()
    assert "is the same module as another plugin" in register(item, item).broken["TOY"]


def test_a_method_goes_by_the_name_of_its_entry_point():
    assert (
        "declares the method 'TOY'; its entry point must have the same name, not 'MyToy'"
        in register(plugin(), name="MyToy").broken["MyToy"]
    )


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"name": "TOY"}, "declare_method returned dict, not a MethodInfo"),
        (MethodInfo(name="TOY", summary="", options=dict), "MethodInfo.options of TOY is <class 'dict'>, not a dataclass"),
        (toy_info(stages=frozenset()), "MethodInfo.stages of TOY is empty"),
        (toy_info(stages=frozenset({"base"})), "MethodInfo.stages of TOY holds ['base'], which is no quantkit.Stage"),
        (toy_info(name="TOY 2"), "MethodInfo.name is 'TOY 2'; letters and digits, at most 32, make a method's name"),
        (toy_info(summary=None), "MethodInfo.summary of TOY is None, not a text"),
        (toy_info(notes="fast"), "MethodInfo.notes of TOY is 'fast', not MethodNotes of texts"),
        (toy_info(notes=MethodNotes(paper=2023)), "not MethodNotes of texts"),
        (toy_info(devices=()), "MethodInfo.devices of TOY is empty"),
        (toy_info(devices="cpu"), "MethodInfo.devices of TOY is 'cpu', not a tuple of texts"),
        (toy_info(claims=(4,)), "MethodInfo.claims of TOY is (4,), not a tuple of texts"),
        (toy_info(adapters=("LoRA",)), "MethodInfo.adapters of TOY is ('LoRA',); known: NoPeft, LoRa, DoRa, VeRa"),
        (toy_info(calibration="maybe"), "MethodInfo.calibration of TOY is 'maybe'; it must be one of ('none', 'optional'"),
        (toy_info(gate_limits={4: 0.1}), "MethodInfo.gate_limits of TOY is {4: 0.1}, not bits to GateLimits"),
    ],
)
def test_a_wrong_declaration_is_broken(answer, reason):
    assert reason in register(plugin(declare_method=answering("declare_method", answer))).broken["TOY"]


def test_a_declaration_that_raises_costs_only_its_own_method():
    @hookimpl
    def declare_method():
        raise RuntimeError("no licence")

    methods = Methods()
    methods.register(plugin(declare_method=declare_method), Source("Bad", "bad 1"))
    methods.register(plugin(), Source("TOY", "good 1"))
    assert methods.broken["Bad"] == "plugin 'Bad' of bad 1: RuntimeError: no licence"
    assert methods.plan("TOY", {}, CONTEXT).method == "TOY"


def test_a_plugin_without_a_method_may_only_wrap():
    methods = register(plugin(declare_method=None))
    assert (
        "owns no method, so its build_quantization_plan may only wrap: mark it @hookimpl(wrapper=True)" in methods.broken["TOY"]
    )


def test_a_wrapper_sees_every_method():
    seen = []

    @hookimpl(wrapper=True)
    def build_quantization_plan(context):
        plan = yield
        seen.append(plan.method)
        return replace(plan, notes=("seen",))

    methods = register(plugin())
    watcher = plugin(declare_method=None, build_quantization_plan=build_quantization_plan)
    methods.register(watcher, Source("Watcher", "watch 1"))
    assert methods.plan("TOY", {}, CONTEXT).notes == ("seen",)
    assert seen == ["TOY"]
    assert methods.names == ("TOY",)
    assert methods.broken == {}


def test_a_hook_goes_to_the_owner_only():
    @hookimpl
    def declare_method():
        return MethodInfo(name="OTHER", summary="", options=Options)

    methods = register(plugin(load_kwargs=answering("load_kwargs", {"mine": True})))
    other = plugin(declare_method=declare_method, load_kwargs=answering("load_kwargs", {"mine": False}))
    methods.register(other, Source("OTHER", "other 1"))
    assert methods.load_kwargs(toy_plan()) == {"mine": True}


def test_a_hook_that_is_left_out_has_nothing_to_say_about_loading():
    assert register(plugin()).load_kwargs(toy_plan()) == {}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"method": "TOY"}, "build_quantization_plan returned dict, not a QuantizationPlan"),
        (None, "build_quantization_plan returned NoneType"),
        (toy_plan(method="QLORA"), "the plan's method is 'QLORA'; asked for was 'TOY'"),
        (toy_plan(spec=spec(method="QLORA")), "the plan's spec.method is 'QLORA'; asked for was 'TOY'"),
        (toy_plan(stage=Stage.TRAINED), "the plan's stage is <Stage.TRAINED: 'trained'>; asked for was"),
        (toy_plan(spec=spec(group_size=32)), "the option group_size is 64 but the plan's spec says 32"),
    ],
)
def test_a_plan_that_is_not_what_was_asked_for_is_refused(answer, reason):
    methods = register(plugin(build_quantization_plan=answering("build_quantization_plan", answer)))
    with pytest.raises(PluginError, match="plugin 'TOY' of dist0") as raised:
        methods.plan("TOY", {}, CONTEXT)
    assert reason in str(raised.value)


def test_a_stage_the_method_does_not_work_at_is_refused():
    with pytest.raises(UsageError, match="TOY works at stage base, not at 'trained'"):
        register(plugin()).plan("TOY", {}, replace(CONTEXT, stage=Stage.TRAINED))


def test_an_adapter_the_method_does_not_carry_is_refused():
    info = MethodInfo(name="TOY", summary="", options=Options, adapters=("LoRa",))
    methods = register(
        plugin(
            declare_method=answering("declare_method", info),
            build_quantization_plan=answering("build_quantization_plan", toy_plan(adapter=AdapterPlan(kind="VeRa"))),
        )
    )
    with pytest.raises(UsageError, match="TOY carries the adapters LoRa; PEFT_CONFIG is 'VeRa'"):
        methods.plan("TOY", {}, CONTEXT)


def test_options_are_converted_and_misspelt_ones_suggested():
    methods = register(plugin())
    assert methods.plan("TOY", {"group_size": "32"}, CONTEXT).spec.group_size == 32
    with pytest.raises(UsageError, match=r"options of TOY: unknown option 'groupsize'\. Did you mean 'group_size'\?"):
        methods.options("TOY", {"groupsize": 32})


def test_load_kwargs_of_another_type_are_refused():
    with pytest.raises(PluginError, match="load_kwargs returned list, not a dict"):
        register(plugin(load_kwargs=answering("load_kwargs", []))).load_kwargs(toy_plan())


@pytest.mark.parametrize("hook", ["quantize_model", "prepare_model", "post_train_merge"])
def test_a_model_hook_must_return_the_model(hook):
    from torch import nn

    def call(methods):
        return getattr(methods, hook)(toy_plan(), nn.Linear(1, 1))

    with pytest.raises(PluginError, match=f"does not implement {hook}, or returned None; return the model"):
        call(register(plugin()))
    with pytest.raises(PluginError, match=f"{hook} returned str, not a model"):
        call(register(plugin(**{hook: answering(hook, "model")})))
    assert isinstance(call(register(plugin(**{hook: answering(hook, nn.Linear(2, 2))}))), nn.Linear)


def test_claims_lead_from_storage_kinds_to_methods():
    info = MethodInfo(name="TOY", summary="", options=Options, claims=("toy-4bit",))
    assert register(plugin(declare_method=answering("declare_method", info))).claims() == {"toy-4bit": "TOY"}


def test_missing_requirements_say_what_was_found():
    needs = ("quantkit-nowhere>=1", "pluggy>=999", "pluggy>=1")
    info = MethodInfo(name="TOY", summary="", options=Options, requirements=needs, devices=("cuda",))
    methods = register(plugin(declare_method=answering("declare_method", info)))
    missing = methods.missing("TOY")
    assert missing[0] == "quantkit-nowhere>=1 (not installed)"
    assert missing[1].startswith("pluggy>=999 (found 1.")
    assert len(missing) == 2
    with pytest.raises(UsageError, match=r"TOY needs quantkit-nowhere>=1 \(not installed\), .*; install it with pip"):
        require_usable(methods, ["TOY"], "cuda")


def test_a_device_the_method_does_not_run_on_is_said():
    info = MethodInfo(name="TOY", summary="", options=Options, devices=("cuda",))
    methods = register(plugin(declare_method=answering("declare_method", info)))
    with pytest.raises(UsageError, match="TOY runs on cuda; this machine offers 'cpu'"):
        require_usable(methods, ["TOY"], "cpu")


def test_only_the_shared_fold_that_nobody_wraps_needs_no_model():
    @hookimpl
    def post_train_merge(model):
        return model

    @hookimpl(wrapper=True)
    def watch(model):
        return (yield)

    watch.__name__ = "post_train_merge"
    assert not register(plugin()).folds_exactly("TOY")
    assert not register(plugin(post_train_merge=post_train_merge)).folds_exactly("TOY")
    methods = register(plugin(post_train_merge=fold_into_dense))
    assert methods.folds_exactly("TOY")
    watcher = plugin(declare_method=None, build_quantization_plan=None, post_train_merge=watch)
    methods.register(watcher, Source("Watcher", "watch 1"))
    assert methods.broken == {}
    assert not methods.folds_exactly("TOY")
