"""Do our own plugins keep the contract that we ask of others, and do their plans have names that can be read back?"""

from typing import ClassVar

from quantkit.methods import Methods
from quantkit.plan import MethodInfo
from quantkit.testing import MethodContract
from quantkit_registry.names import ArtifactName, format_name, parse_name


class NamedContract(MethodContract):
    """The contract, and the one promise that quantkit's core cannot check: the registry's names are not its business."""

    def test_the_name_of_its_artifacts_reads_back(self, methods: Methods, info: MethodInfo) -> None:
        for stage in info.stages:
            plan = self.plan(methods, stage)
            name = ArtifactName.of(base="org/Tiny-Llama", dataset="openmath", adapter=plan.adapter, recipe=plan.spec)
            assert parse_name(format_name(name)) == name
            assert f"_{self.method}" in format_name(name)


class TestNoQuant(NamedContract):
    method = "NoQuant"


class TestInt8(NamedContract):
    method = "INT8"
    merge_tolerance: ClassVar[float] = 0.15
    """LLM.int8 quantizes activations while it runs, which a dense model cannot repeat."""


class TestBnb4Bit(NamedContract):
    method = "BNB4BIT"
    options: ClassVar[dict[str, object]] = {"quant_type": "fp4"}


class TestQlora(NamedContract):
    method = "QLORA"


class TestRtn(NamedContract):
    method = "RTN"
    options: ClassVar[dict[str, object]] = {"group_size": 32}
    other_options: ClassVar[dict[str, object]] = {"activations_bits": 8}


class TestGptq(NamedContract):
    method = "GPTQ"
    options: ClassVar[dict[str, object]] = {"group_size": 32}


class TestAwq(NamedContract):
    method = "AWQ"
    options: ClassVar[dict[str, object]] = {"group_size": 32, "n_grid": 3}
    other_options: ClassVar[dict[str, object]] = {"symmetric": False}


class TestSmoothQuant(NamedContract):
    method = "SmoothQuant"
    merge_tolerance: ClassVar[float] = 0.13
    """The base rounds activations while it runs, which a dense model does not."""


class TestQuaRot(NamedContract):
    method = "QuaRot"
    options: ClassVar[dict[str, object]] = {"group_size": 32}
    other_options: ClassVar[dict[str, object]] = {"activations_bits": 8, "seed": 1}


class TestFp8(NamedContract):
    method = "FP8"
    options: ClassVar[dict[str, object]] = {"activations_bits": None}
    other_options: ClassVar[dict[str, object]] = {"activations_bits": 8}


class TestTorchao(NamedContract):
    method = "TorchAO"
    other_options: ClassVar[dict[str, object]] = {"group_size": 32}


class TestTorchao4(NamedContract):
    method = "TorchAO"
    options: ClassVar[dict[str, object]] = {"weights_bits": 4, "group_size": 32}


class TestDynamicInt8(NamedContract):
    method = "DynamicINT8"
    merge_tolerance: ClassVar[float] = 0.13
    """The base rounds activations while it runs, which a dense model does not."""


class TestAutoRound(NamedContract):
    method = "AutoRound"
    options: ClassVar[dict[str, object]] = {"group_size": 32, "iterations": 5}
    other_options: ClassVar[dict[str, object]] = {"rounding_learning_rate": 0.5, "seed": 1}


class TestHqq(NamedContract):
    method = "HQQ"
    options: ClassVar[dict[str, object]] = {"group_size": 32, "lp_norm": 0.7}


class TestAdaRound(NamedContract):
    method = "AdaRound"
    options: ClassVar[dict[str, object]] = {"group_size": 32, "iterations": 5}


class TestBrecq(NamedContract):
    method = "BRECQ"
    options: ClassVar[dict[str, object]] = {"group_size": 32, "iterations": 5}
