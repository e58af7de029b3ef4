"""Does the contract catch the plugins it is there to catch?"""

from dataclasses import asdict, dataclass, replace
from types import ModuleType
from typing import Any, ClassVar

import pytest

from quantkit import MethodInfo, QuantizationSpec, hookimpl
from quantkit.errors import VerificationError
from quantkit.methods import Methods, Source
from quantkit.testing import MethodContract, build_tiny_base
from quantkit_plugins import noquant


@dataclass(frozen=True)
class Options:
    group_size: int = 32
    search: str = "minmax"


class ToyContract(MethodContract):
    __test__ = False
    method = "TOY"
    other_options: ClassVar[dict[str, Any]] = {"search": "mse"}


def toy(**hooks: Any) -> Methods:
    """NoQuant under the name TOY, with these hooks instead of its own."""

    @hookimpl
    def declare_method():
        return MethodInfo(name="TOY", summary="a toy", options=Options, adapters=("LoRa",))

    @hookimpl
    def build_quantization_plan(options, context):
        plan = noquant.build_quantization_plan(context)
        spec = plan.spec.with_changes(method="TOY", group_size=options.group_size)
        return replace(plan, method="TOY", spec=spec, options=asdict(options))

    module = ModuleType("toy")
    own = {name: item for name, item in vars(noquant).items() if hasattr(item, "quantkit_impl")}
    vars(module).update(own | {"declare_method": declare_method, "build_quantization_plan": build_quantization_plan} | hooks)
    methods = Methods()
    methods.register(module, Source("TOY", "toy 1"))
    assert methods.broken == {}
    return methods


def run(test: str, methods: Methods, *fixtures: Any) -> None:
    getattr(ToyContract(), test)(methods, methods.info("TOY"), *fixtures)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_tiny_base(tmp_path_factory.mktemp("contract") / "Contract-Llama")


def test_an_option_that_reaches_nothing_is_caught():
    @hookimpl
    def build_quantization_plan(options, context):
        plan = noquant.build_quantization_plan(context)
        spec = plan.spec.with_changes(method="TOY", group_size=options.group_size)
        return replace(plan, method="TOY", spec=spec)

    with pytest.raises(AssertionError, match="search='mse' does not reach the plan"):
        run("test_no_option_is_accepted_and_ignored", toy(build_quantization_plan=build_quantization_plan))


def test_a_second_value_that_cannot_be_guessed_is_asked_for(monkeypatch):
    monkeypatch.setattr(ToyContract, "other_options", {})
    with pytest.raises(AssertionError, match="cannot think of another value for search; name one in other_options"):
        run("test_no_option_is_accepted_and_ignored", toy())


def test_a_plan_that_is_no_plain_data_is_caught():
    @hookimpl
    def build_quantization_plan(options, context):
        plan = noquant.build_quantization_plan(context)
        spec = plan.spec.with_changes(method="TOY", group_size=32)
        return replace(plan, method="TOY", spec=spec, options={"config": options})

    with pytest.raises(TypeError, match="not JSON serializable"):
        run("test_a_plan_is_plain_data", toy(build_quantization_plan=build_quantization_plan))


def test_weights_that_are_not_what_the_plan_promises_are_caught(base):
    @hookimpl
    def build_quantization_plan(options, context):
        plan = noquant.build_quantization_plan(context)
        spec = QuantizationSpec(method="TOY", weights_bits=4, weights_dtype="int4", group_size=options.group_size)
        return replace(plan, method="TOY", spec=spec, options=asdict(options))

    with pytest.raises(VerificationError, match="weights_bits is 16, not 4; weights_dtype is 'bfloat16', not 'int4'"):
        run("test_what_is_in_memory_is_what_the_plan_says", toy(build_quantization_plan=build_quantization_plan), base)


def test_adapters_that_do_not_learn_are_caught(base):
    @hookimpl
    def prepare_model(model):
        model.requires_grad_(False)
        model.model.layers[0].register_forward_hook(lambda _module, _inputs, output: output.detach())
        return model

    with pytest.raises(AssertionError, match="got no gradient"):
        run("test_every_adapter_parameter_learns", dense(prepare_model=prepare_model), base)


def test_a_merge_that_loses_the_adapters_is_caught(base):
    @hookimpl
    def post_train_merge(model):
        return model.unload()

    with pytest.raises(AssertionError, match="LoRa: merging changed logits by"):
        run("test_a_merged_model_gives_the_logits_of_adapter_and_base", dense(post_train_merge=post_train_merge), base)


def dense(**hooks: Any) -> Methods:
    """TOY whose spec is what NoQuant's weights really are."""

    @hookimpl
    def build_quantization_plan(options, context):
        plan = noquant.build_quantization_plan(context)
        return replace(plan, method="TOY", spec=plan.spec.with_changes(method="TOY"), options=asdict(options))

    @hookimpl
    def declare_method():
        return MethodInfo(name="TOY", summary="a toy", options=Plain, adapters=("LoRa",))

    return toy(build_quantization_plan=build_quantization_plan, declare_method=declare_method, **hooks)


@dataclass(frozen=True)
class Plain:
    pass


def test_a_plugin_that_keeps_its_promises_passes(base):
    for test in (
        "test_a_plan_is_plain_data",
        "test_no_option_is_accepted_and_ignored",
        "test_what_is_in_memory_is_what_the_plan_says",
        "test_every_adapter_parameter_learns",
        "test_a_merged_model_gives_the_logits_of_adapter_and_base",
    ):
        run(test, dense(), *([base] if "plan_is" not in test and "option" not in test else []))
