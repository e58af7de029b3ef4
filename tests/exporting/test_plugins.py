"""Formats of other people's methods: answered, rewritten and listed as quantkit's own; what breaks a rule costs only itself."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from quantkit import AdapterPlan, PlanContext, Stage, VerificationError, hookimpl
from quantkit.exporting import Holding, Row, answer_for, known_rows
from quantkit.exporting.answers import Answer, as_it_is, route, written
from quantkit.methods import Methods, Source, installed_methods
from quantkit.modeling import load_base, load_tokenizer
from quantkit.saving import save_artifact
from quantkit.testing import MethodContract, logits, reload_logits
from quantkit_registry.detect import detect
from quantkit_registry.names import ArtifactName, format_name
from quantkit_registry.records import ArtifactRecord, BaseReference
from tests.exporting import toy8
from tests.plugins.example import readme_block

SOURCE = Source("TOY8", "quantkit-toy 1")


def with_plugin(**hooks: Any) -> Methods:
    methods = Methods.discover()
    methods.register(toy8.plugin(**hooks), SOURCE)
    return methods


def declaring(answer: Any) -> Any:
    @hookimpl
    def declare_exports() -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return declare_exports


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> Iterator[Methods]:
    """The installed methods and TOY8."""
    found = with_plugin()
    assert found.broken == {}
    with monkeypatch.context() as patch:
        patch.setattr(Methods, "discover", classmethod(lambda _cls: found))
        installed_methods.cache_clear()
        yield found
    installed_methods.cache_clear()


@pytest.fixture
def artifact(methods: Methods, small_model: Path, tmp_path: Path) -> Path:
    """A model that TOY8 quantized, saved with its record."""
    plan = methods.plan("TOY8", {}, PlanContext(stage=Stage.TRAINED, adapter=AdapterPlan(kind="NoPeft")))
    model = load_base(str(small_model), plan=plan, methods=methods, device="cpu")
    base = BaseReference(name_or_path=str(small_model))
    name = format_name(ArtifactName.of(base="Small", dataset=None, adapter=plan.adapter, recipe=plan.spec))
    record = ArtifactRecord(name=name, kind="model", quantization=plan.spec, recipe=plan, base=base).to_dict()
    folder = tmp_path / name
    save_artifact(folder, model=model, tokenizer=load_tokenizer(str(small_model)), record=record)
    return folder


def test_its_weights_are_recognised_on_its_word_and_its_records(artifact, methods):
    found = detect(artifact, claims=methods.claims())
    assert (found.method, found.format) == ("TOY8", "toy8")
    assert ("tensors", "codes in a layout that is not known here") in found.evidence


def test_a_dense_file_under_a_strangers_name_is_refused(small_model, tmp_path):
    folder = tmp_path / "Claimed"
    shutil.copytree(small_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "toy8", "bits": 8}}))
    with pytest.raises(VerificationError, match="says toy8, the tensors are dense bfloat16; they disagree"):
        detect(folder, claims={})


def test_every_target_is_answered_as_the_plugin_declares_it(artifact, exported, export):
    data = exported(artifact)
    assert data["source"] == "toy8"
    told = {target: (answer["outcome"], answer["step"]) for target, answer in data["targets"].items()}
    assert told["transformers"] == ("as it is", "none")
    assert told["dense"] == ("exact", "plugin")
    assert told["awq"] == ("lossy", "route")
    assert told["vllm"] == ("no", "route")
    assert data["targets"]["vllm"]["source"] == "plugin 'TOY8' of quantkit-toy 1"
    code, out, _ = export(artifact, "--to", "gptq", "--dry-run")
    assert code == 0
    assert "from TOY8's own format" in " ".join(out.split())
    assert "_exportgptq" in out


def test_it_stands_in_the_whole_table(methods, export, exported):
    assert "TOY8's own format" in export("--table")[1]
    assert {"from": "toy8", "to": "dense"}.items() <= next(
        row for row in exported("--table")["table"] if (row["from"], row["to"]) == ("toy8", "dense")
    ).items()


@pytest.mark.parametrize("arguments", [("--to", "transformers", "--dequantize"), ("--to", "gptq")])
def test_its_converter_writes_what_gives_the_same_logits(artifact, exported, tmp_path, arguments, methods):
    done = exported(artifact, *arguments)
    assert done["checked"] == {"max_logit_difference": 0.0}
    if "--dequantize" in arguments:
        source = load_base(
            str(artifact),
            plan=detect(artifact, claims=methods.claims()).record.recipe,
            methods=methods,
            device="cpu",
        )
        assert torch.equal(reload_logits(Path(done["artifact"]), tmp_path / "logits"), logits(source))


def test_a_converter_that_changes_the_model_is_found_out_and_nothing_is_kept(artifact, export, root, methods, monkeypatch):
    honest = methods.export_model

    def changed(plan, model, target):
        model = honest(plan, model, target)
        model.lm_head.weight.data.mul_(1.01)
        return model

    monkeypatch.setattr(methods, "export_model", changed)
    code, _, err = export(artifact, "--to", "transformers", "--dequantize")
    assert code == 3
    assert "the export was to be exact and is not" in err
    assert not root.exists() or not list(root.glob("*TOY8*"))


ROW = Row(title="toy", answers={})
GONE = route("no", "Nowhere.", "tested")


def answering(**answers: Answer) -> dict[str, Row]:
    return {"toy8": Row(title="toy", answers=answers)}


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (RuntimeError("no licence"), "declare_exports raised RuntimeError: no licence"),
        (["toy8"], "declare_exports returned list, not a mapping of storage kinds to rows"),
        ({"Toy 8": ROW}, "names the storage kind 'Toy 8'; it is a quant_method in small letters"),
        ({"gptq": ROW}, "names 'gptq', which quantkit reads and answers for itself"),
        ({"hqq": ROW}, "names 'hqq', which HQQ declares; the first is used"),
        ({"toy8": {"dense": GONE}}, "not a quantkit.exporting.Row with a title and answers"),
        (answering(vlm=GONE), "the row toy8 answers for 'vlm'. Did you mean 'vllm'? Known: transformers, dense"),
        (answering(dense=replace(GONE, how="")), "is no Answer with an outcome, how it is had and what that rests on"),
        (answering(dense=replace(GONE, step="repack")), "the step 'repack' is quantkit's own; none, route, plugin are"),
        (answering(dense=replace(GONE, outcome="as it is")), "'as it is' does not go with the step 'route'"),
        (answering(gguf=written("exact", "By us.", "tested")), "export_model gives dense, awq, gptq, compressed-tensors"),
        (
            answering(dense=written("exact", "By us.", "tested")),
            "is 'plugin', but the plugin implements no export_model",
        ),
    ],
)
def test_a_row_that_breaks_a_rule_is_left_out_and_says_why(answer, text):
    rows = known_rows(with_plugin(declare_exports=declaring(answer), export_model=None))
    (reason,) = rows.broken
    assert reason.startswith("plugin 'TOY8' of quantkit-toy 1: ")
    assert text in reason
    assert "hqq" in rows.owners
    assert "toy8" not in rows.sources


def test_a_route_by_a_method_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setenv("QUANTKIT_DISABLE_PLUGINS", "AWQ")
    held = Holding(name="Some", adapter="LoRa", rows=known_rows(Methods.discover()))
    assert answer_for(held, "awq").notes == ("Not installed here: the method AWQ.",)
    assert answer_for(held, "gptq").notes == ()


def test_the_tutorials_row_is_sound():
    module = ModuleType("tutorial")
    exec(readme_block("python", "Row(title="), vars(module))
    rows = known_rows(with_plugin(declare_exports=module.declare_exports, export_model=module.export_model))
    assert rows.broken == ()
    assert {target: rows.table["toy8", target].outcome for target in ("dense", "gguf")} == {"dense": "exact", "gguf": "no"}


def test_exports_belong_to_a_method():
    methods = Methods()
    methods.register(toy8.plugin(**dict.fromkeys(set(toy8.HOOKS) - {"declare_exports"})), SOURCE)
    assert known_rows(methods).broken == (f"{SOURCE}: declares exports, but owns no method; add declare_method",)


def test_a_format_that_nobody_speaks_for_and_one_that_is_left_out_have_no_way():
    for rows in (known_rows(Methods()), known_rows(with_plugin(declare_exports=declaring(answering(vlm=GONE))))):
        assert rows.source_of("toy8") == "other"


def test_the_command_says_what_was_left_out(monkeypatch, export):
    broken = with_plugin(declare_exports=declaring(answering(vlm=as_it_is("It is.", "tested"))))
    monkeypatch.setattr("quantkit_tools.export.installed_methods", lambda: broken)
    assert "left out: plugin 'TOY8' of quantkit-toy 1: the row toy8 answers for 'vlm'" in " ".join(export("--table")[2].split())


class Contract(MethodContract):
    __test__ = False
    method = "TOY8"


def test_the_contract_holds_exports_to_their_word(small_model, tmp_path):
    check = Contract().test_what_it_exports_is_what_it_declares
    methods = with_plugin()
    check(methods, methods.info("TOY8"), small_model, tmp_path)

    @hookimpl
    def export_model(model: Any, target: str) -> Any:
        model.lm_head.weight.data.mul_(1.01)
        return toy8.export_model(model, target)

    methods = with_plugin(export_model=export_model)
    with pytest.raises(AssertionError, match="dense: exact, but logits moved by"):
        check(methods, methods.info("TOY8"), small_model, tmp_path)
