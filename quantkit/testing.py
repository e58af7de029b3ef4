"""Does a plugin keep the promises that a run relies on? A suite of tests its author inherits.

    class TestRTN(MethodContract):
        method = "RTN"
        options = {"group_size": 32}

The tests ask the installed plugin through the same door as a run does, on a tiny random model of their own, so a plugin
needs no fixtures and no downloads. A description of the contract in prose would not fail when it is broken.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import pytest

from quantkit.exporting import known_rows
from quantkit.methods import Methods, installed_methods, require_usable
from quantkit.plan import AdapterPlan, MethodInfo, PeftKind, PlanContext, QuantizationPlan, Stage
from quantkit.testing_models import build_tiny_base, load, load_with_adapter, logits, reload_logits, tiny_base_config, train

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MethodContract", "build_tiny_base", "logits", "reload_logits"]

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets")
"""Packages that declaring a method and planning must not import."""
DECLARE = """
import sys
from quantkit.methods import installed_methods
installed_methods().info({method!r})
heavy = [name for name in {heavy!r} if name in sys.modules]
sys.exit(f"importing the plugins imports {{', '.join(heavy)}}; import them inside the hooks" if heavy else 0)
"""


class MethodContract:
    """Inherit, set `method`, and pytest runs the contract; the plugin must be installed (its entry point is looked up)."""

    method: ClassVar[str]
    """The method under test."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Options to test it with."""
    other_options: ClassVar[Mapping[str, Any]] = {}
    """For options whose type does not suggest a second valid value (numbers are doubled, booleans turned): one to try."""
    reload_tolerance: ClassVar[float] = 1e-4
    """Largest difference of a logit between the saved model in memory and after a plain reload."""
    merge_tolerance: ClassVar[float] = 1e-4
    """Largest difference of a logit between adapters on their base, in float32, and the merged model."""

    @pytest.fixture
    def methods(self) -> Methods:
        """Every installed method."""
        return installed_methods()

    @pytest.fixture
    def info(self, methods: Methods) -> MethodInfo:
        """What the plugin declared; the tests are skipped where its requirements are not met."""
        info = methods.info(self.method)
        if lacking := methods.missing(self.method):
            pytest.skip(f"{self.method} needs {', '.join(lacking)}")
        if "cpu" not in info.devices:
            pytest.skip(f"{self.method} runs on {', '.join(info.devices)}; the contract is tested on the CPU")
        return info

    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        """Folder of a tiny dense base."""
        return build_tiny_base(tmp_path / "Contract-Llama")

    def plan(
        self, methods: Methods, stage: Stage, *, kind: PeftKind | None = None, compute_dtype: str = "bfloat16", **options: Any
    ) -> QuantizationPlan:
        """Return the plugin's plan at this stage; by default with LoRa adapters where it carries them."""
        kinds = methods.info(self.method).adapters
        adapter = AdapterPlan(kind=kind or ("LoRa" if "LoRa" in kinds else "NoPeft"), r=4, lora_alpha=8)
        context = PlanContext(
            stage=stage,
            adapter=adapter if stage is Stage.BASE else AdapterPlan(kind="NoPeft"),
            compute_dtype=compute_dtype,
            model_config=tiny_base_config(),
        )
        return methods.plan(self.method, {**self.options, **options}, context)

    def test_the_method_is_declared_without_importing_anything_heavy(self, info: MethodInfo) -> None:
        script = DECLARE.format(method=self.method, heavy=HEAVY)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert info.summary

    def test_the_method_is_usable_where_its_requirements_are_met(self, methods: Methods, info: MethodInfo) -> None:
        require_usable(methods, [info.name], "cpu")

    def test_a_plan_is_plain_data(self, methods: Methods, info: MethodInfo) -> None:
        for stage in info.stages:
            plan = self.plan(methods, stage)
            assert QuantizationPlan.from_dict(json.loads(json.dumps(plan.to_dict(), allow_nan=False))) == plan

    def test_the_same_settings_give_the_same_plan(self, methods: Methods, info: MethodInfo) -> None:
        for stage in info.stages:
            assert self.plan(methods, stage) == self.plan(methods, stage)

    def test_no_option_is_accepted_and_ignored(self, methods: Methods, info: MethodInfo) -> None:
        given = methods.options(self.method, self.options)
        for option in fields(info.options):
            other = self.other_options.get(option.name, _another(info.options, option.name, getattr(given, option.name)))
            assert other is not None, f"cannot think of another value for {option.name}; name one in other_options"
            for stage in info.stages:
                changed = self.plan(methods, stage, **{option.name: other})
                assert changed != self.plan(methods, stage), f"{option.name}={other!r} does not reach the plan"

    def test_what_is_in_memory_is_what_the_plan_says(self, methods: Methods, info: MethodInfo, base: Path) -> None:
        from quantkit.measure import check_model, loaded_spec

        for stage in info.stages:
            plan = self.plan(methods, stage)
            check_model(load(methods, plan, base), loaded_spec(plan))

    def test_every_adapter_parameter_learns(self, methods: Methods, info: MethodInfo, base: Path) -> None:
        for kind in self.adapter_kinds(info):
            plan = self.plan(methods, Stage.BASE, kind=kind)
            model = load_with_adapter(methods, plan, base)
            logits(model)  # an evaluation before training must not harm it
            faults = train(model, steps=1)
            assert not faults, f"{plan.adapter.kind} on {self.method}: {len(faults)} faults, e.g. {'; '.join(faults[:3])}"

    def test_a_merged_model_gives_the_logits_of_adapter_and_base(self, methods: Methods, info: MethodInfo, base: Path) -> None:
        from quantkit.layers import linear_layers

        for kind in self.adapter_kinds(info):
            plan = self.plan(methods, Stage.BASE, kind=kind, compute_dtype="float32")
            untrained = logits(load(methods, plan, base))
            model = load_with_adapter(methods, plan, base)
            train(model, steps=3)
            adapted = logits(model)
            merged = methods.post_train_merge(plan, model)
            assert not hasattr(merged, "peft_config"), f"{kind}: the merged model still carries adapters"
            assert all(layer.weight.is_floating_point() for layer in linear_layers(merged).values())
            learnt, lost = _gap(untrained, adapted), _gap(adapted, logits(merged))
            assert learnt > 5 * self.merge_tolerance, f"{kind}: training changed logits by {learnt:.2g} only"
            assert lost <= self.merge_tolerance, f"{kind}: merging changed logits by {lost:.2g}"

    def test_a_saved_model_loads_without_quantkit_and_gives_the_same_logits(
        self, methods: Methods, info: MethodInfo, base: Path, tmp_path: Path
    ) -> None:
        for stage in info.stages:
            model = load(methods, self.plan(methods, stage), base)
            before = logits(model)
            model.save_pretrained(tmp_path / stage)
            after = reload_logits(tmp_path / stage, tmp_path / "logits")
            assert _gap(before, after) <= self.reload_tolerance, f"stage {stage}: plain transformers computes something else"

    def test_what_it_exports_is_what_it_declares(self, methods: Methods, info: MethodInfo, base: Path, tmp_path: Path) -> None:
        rows = known_rows(methods)
        assert not [reason for reason in rows.broken if reason.startswith(str(methods.source(self.method)))]
        for target, answer in rows.rewritten_by(info.name).items():
            plan = self.plan(methods, Stage.TRAINED if Stage.TRAINED in info.stages else Stage.BASE)
            before = logits(model := load(methods, plan, base))
            methods.export_model(plan, model, target).save_pretrained(folder := tmp_path / target)
            gap = _gap(before, reload_logits(folder, tmp_path / "logits"))
            assert answer.outcome != "exact" or gap <= self.reload_tolerance, f"{target}: exact, but logits moved by {gap:.2g}"

    def adapter_kinds(self, info: MethodInfo) -> list[PeftKind]:
        """Return the PEFT kinds to train; the test is skipped for a method that works on finished models only."""
        if Stage.BASE not in info.stages:
            pytest.skip(f"{self.method} works on finished models; no adapters are trained on it")
        return [kind for kind in ("LoRa", "DoRa", "VeRa") if kind in info.adapters]


def _gap(first: "Tensor", second: "Tensor") -> float:
    return float((first - second).abs().max())


def _another(cls: type[Any], name: str, value: Any) -> Any:
    """Return a second valid value of an option, judged by its type; None where the type does not tell."""
    hint = get_type_hints(cls)[name]
    if get_origin(hint) is Literal:
        return next((choice for choice in get_args(hint) if choice != value), None)
    if isinstance(value, bool):
        return not value
    return value * 2 if isinstance(value, int | float) and value > 0 else None
