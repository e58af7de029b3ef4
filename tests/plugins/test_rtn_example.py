"""Does the tutorial's method, built from plugins/README.md as a separate distribution, work from plan to evaluation?"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quantkit import AdapterPlan, PlanContext, QuantizationPlan, Stage
from quantkit.methods import Methods, installed_methods
from quantkit_registry.names import ArtifactName, format_name, parse_name
from tests.plugins.example import build_distribution, readme_block

pytest.importorskip("compressed_tensors")

Contract: Any = {}
exec(readme_block("python", "MethodContract"), Contract)


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which quantkit-myrtn is installed, for this process and those it starts."""
    folder = build_distribution(tmp_path_factory.mktemp("rtn"))
    sys.path.insert(0, str(folder))
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([path] if path else [])])
    installed_methods.cache_clear()
    yield folder
    sys.path.remove(str(folder))
    os.environ.pop("PYTHONPATH")
    if path:
        os.environ["PYTHONPATH"] = path
    sys.modules.pop("quantkit_myrtn", None)
    installed_methods.cache_clear()


@pytest.fixture
def methods(site: Path) -> Methods:
    return installed_methods()


@pytest.fixture
def plan(methods: Methods) -> QuantizationPlan:
    context = PlanContext(stage=Stage.TRAINED, adapter=AdapterPlan(kind="NoPeft"))
    return methods.plan("myrtn", {"group_size": "32"}, context)


class TestTheContractOfTheTutorial(Contract["TestMyRTN"]):
    """The block that plugin authors copy, run as it stands."""


def test_the_method_fits_in_a_file_of_under_80_lines() -> None:
    assert len(readme_block("python", "class RtnOptions").splitlines()) < 80


def test_it_comes_from_a_distribution_of_its_own(methods: Methods) -> None:
    assert methods.source("MyRTN").distribution == "quantkit-myrtn 0.1.0"
    assert methods.names[-1] == "MyRTN"  # quantkit's own come first


def test_its_plan_survives_json(plan: QuantizationPlan) -> None:
    assert QuantizationPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_its_artifacts_have_a_name_that_reads_back(plan: QuantizationPlan) -> None:
    name = ArtifactName.of(base="org/Tiny-Llama", dataset=None, adapter=plan.adapter, recipe=plan.spec)
    assert format_name(name) == "Tiny-Llama-base_MyRTN_w4_g32_headbf16"
    assert parse_name(format_name(name)) == name


def test_the_readme_quantizes_saves_and_the_folder_loads_plainly_with_equal_logits(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from quantkit.files import verify_manifest
    from quantkit.testing import logits

    block: dict[str, Any] = {"MODEL": str(tiny_model), "TARGET": tmp_path / "quantized"}
    exec(readme_block("python", "load_base("), block)
    verify_manifest(tmp_path / "quantized")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "quantized", dtype="auto").eval()
    assert float((logits(block["model"]) - logits(plain)).abs().max()) <= 1e-4
    dense, packed = (_weight_bytes(folder) for folder in (tiny_model, tmp_path / "quantized"))
    assert packed < 0.45 * dense  # 4 bits and scales for the layers; the embeddings stay in bfloat16


def test_a_saved_artifact_is_detected_loaded_measured_and_evaluated(
    methods: Methods, plan: QuantizationPlan, tiny_model: Path, tmp_path: Path
) -> None:
    from quantkit.evaluation.run import evaluate_model
    from quantkit.modeling import ModelSource, load_base, load_source, load_tokenizer
    from quantkit.saving import save_artifact
    from quantkit_registry.detect import detect
    from quantkit_registry.records import ArtifactRecord, BaseReference

    name = format_name(ArtifactName.of(base="Tiny-Llama", dataset=None, adapter=plan.adapter, recipe=plan.spec))
    base = BaseReference(name_or_path=str(tiny_model))
    record = ArtifactRecord(name=name, kind="model", quantization=plan.spec, recipe=plan, base=base)
    model = load_base(str(tiny_model), plan=plan, methods=methods, device="cpu")
    target = tmp_path / name
    save_artifact(target, model=model, tokenizer=load_tokenizer(str(tiny_model)), record=record.to_dict())

    found = detect(target, claims=methods.claims())
    assert (found.method, found.spec, found.format) == ("MyRTN", plan.spec, "compressed-tensors")
    loaded = load_source(ModelSource(**found.source_fields), methods, device="cpu")
    (result,) = evaluate_model(loaded, load_tokenizer(str(target)), [_demo_task()], max_new_tokens=8)
    assert result.scores["exact_match"].n == 4


def _demo_task() -> Any:
    from quantkit.data.arithmetic import arithmetic_data
    from quantkit.evaluation.tasks import Example, NumericBoxed

    rows = arithmetic_data(train=1, held_out=4).unseen_numbers
    examples = tuple(
        Example(
            row=index,
            messages=({"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}),
        )
        for index, row in enumerate(rows)
    )
    return NumericBoxed(name="arithmetic", source="generated", fingerprint="0", examples=examples)


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
