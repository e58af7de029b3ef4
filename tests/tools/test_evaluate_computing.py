"""What a registry's results were computed in: alike by default, told apart where somebody asked for something else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit import AdapterPlan, PlanContext, Stage
from quantkit.computing import device_dtype
from quantkit.methods import installed_methods
from quantkit.modeling import load_base
from quantkit_registry.store import Registry
from tests.conftest import Run


@pytest.fixture(params=["bfloat16", "float32"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine is said to be fast in; processes of their own, as several paths have, do not hear it."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: request.param == "bfloat16")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@pytest.fixture
def asked(held_out: Path, tmp_path: Path) -> list[object]:
    return ["--data", held_out, "--limit", 2, "--max-new-tokens", 4, "--latency-prompts", 0, "--registry", tmp_path]


@pytest.mark.usefixtures("machine")
def test_a_base_and_its_adapter_are_computed_alike_and_audit_is_silent(
    kept: Path, tiny_model: Path, asked: list[object], read_json: Callable[..., Any], quantkit: Run
) -> None:
    said = set()
    for path in (tiny_model, kept):
        (artifact,) = read_json("evaluate", path, *asked)["artifacts"]
        said |= {(item["settings"]["dtype"], item["settings"]["dtype_reason"]) for item in artifact["results"]}
    assert said == {(device_dtype("cpu"), "of the device")}
    _, out, _ = quantkit("audit", asked[-1], "--json")
    assert not [item for item in json.loads(out)["findings"] if "dtype" in item["where"]]


def test_a_data_type_that_is_asked_for_is_another_evaluation(
    tiny_model: Path, asked: list[object], read_json: Callable[..., Any], quantkit: Run
) -> None:
    (artifact,) = read_json("evaluate", tiny_model, *asked, "--dtype", "float32")["artifacts"]
    (result,) = artifact["results"]
    assert (result["settings"]["dtype"], result["settings"]["dtype_reason"]) == ("float32", "asked for")
    code, _, err = quantkit("evaluate", tiny_model, *asked, "--dtype", "int8")
    assert (code, "--dtype is 'int8'; use auto, bfloat16, float16, float32" in err) == (2, True)


def test_filed_results_count_whatever_their_data_type_unless_one_is_asked_for() -> None:
    from quantkit_tools.evaluation.computing import computed_otherwise
    from quantkit_tools.evaluation.flags import Flags

    old = {"dtype": "bfloat16"}  # of a version that kept no reason
    assert computed_otherwise(Flags(paths=()), old) == ""
    assert computed_otherwise(Flags(paths=(), dtype="bfloat16"), old) == ""
    assert computed_otherwise(Flags(paths=(), dtype="float32"), old) == "its result has dtype 'bfloat16', not 'float32'"
    whole = Flags(paths=(), integer_kernels=True)
    assert computed_otherwise(whole, old) == "its result was computed without integer kernels"
    assert (
        computed_otherwise(Flags(paths=()), old | {"integer_kernels": True}) == "its result was computed with integer kernels"
    )


def test_integer_kernels_are_used_and_said_and_refused_where_they_do_not_fit(
    tiny_model: Path, kept: Path, asked: list[object], read_json: Callable[..., Any], quantkit: Run
) -> None:
    from transformers import AutoTokenizer

    methods, folder = installed_methods(), Path(str(asked[-1])) / "w8a8"
    plan = methods.plan("DynamicINT8", {}, PlanContext(stage=Stage.TRAINED, adapter=AdapterPlan(kind="NoPeft")))
    load_base(str(tiny_model), plan=plan, methods=methods, device="cpu").save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    (artifact,) = read_json("evaluate", folder, *asked, "--integer-kernels")["artifacts"]
    assert artifact["results"][0]["settings"]["integer_kernels"] is True
    (filed,) = Registry(str(asked[-1])).results(artifact["artifact"]).values()
    assert filed["settings"] == artifact["results"][0]["settings"]
    for path, what in ((tiny_model, "NoQuant"), (kept, "an adapter")):
        code, _, err = quantkit("evaluate", path, *asked, "--integer-kernels")
        assert (code, f"(DynamicINT8, SmoothQuant); this is {what}; leave the flag out" in err) == (2, True)


def test_integer_kernels_are_the_cpus(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, asked: list[object], quantkit: Run
) -> None:
    monkeypatch.setattr("quantkit.modeling.resolve_device", lambda _: "cuda")
    code, _, err = quantkit("evaluate", tiny_model, *asked, "--integer-kernels")
    assert (code, "--integer-kernels run on the CPU, and this is to be evaluated on cuda; add --device cpu" in err) == (2, True)
