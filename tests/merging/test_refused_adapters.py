"""Is an adapter refused that is not the one that was trained, in one line that names what was found?"""

import json

import pytest
import torch

from quantkit.errors import VerificationError
from quantkit.files import write_manifest
from quantkit.merging import merge_streaming
from tests.bench import plan_for
from tests.merging.folders import edit_json, edit_tensors, model_folder, saved_adapter, simple
from tests.merging.spoilt import SPOILT, A, B, record_of, refused


@pytest.mark.parametrize("fault", SPOILT)
def test_tensors_that_are_not_the_adapter(case, fault):
    change, text = SPOILT[fault]
    edit_tensors(case[1], change)
    refused(case, VerificationError, text)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"lora_alpha": 64}, "its files were changed after training: lora_alpha is 64, recorded was 8"),
        ({"use_rslora": True}, "use_rslora is True, recorded was False"),
        ({"rank_pattern": {"nothing": 2}}, r"rank_pattern is \{'nothing': 2\}, recorded was \{\}"),
    ],
)
def test_a_configuration_that_differs_from_the_record(case, change, text):
    (case[1] / "quantization_metadata.json").write_text(json.dumps(record_of(case[2])))
    edit_json(case[1] / "adapter_config.json", **change)
    _with_record(case, text)


def _with_record(case, text):
    base, adapter, _ = case
    with pytest.raises(VerificationError, match=text):
        merge_streaming(base, adapter, base.parent / "out", fingerprint="sha256:right", progress=False)


def test_targets_that_differ_from_the_record(case):
    (case[1] / "quantization_metadata.json").write_text(json.dumps(record_of(case[2])))
    config = json.loads((case[1] / "adapter_config.json").read_text())
    kept = [name for name in config["target_modules"] if not name.endswith("layers.0.self_attn.q_proj")]
    edit_json(case[1] / "adapter_config.json", target_modules=kept)
    edit_tensors(case[1], lambda t: {k: v for k, v in t.items() if k not in (A, B)})
    _with_record(case, r"target_modules adapt 13 layers, recorded were 14; they differ in model.layers.0.self_attn.q_proj")


def test_a_rank_that_is_not_that_of_the_tensors(case):
    edit_json(case[1] / "adapter_config.json", r=8)
    refused(case, VerificationError, r"has the shape \[4, 256\]; .* rank 8 takes \[8, 256\].*configuration was edited")


def test_a_file_that_differs_from_the_manifest(case):
    write_manifest(case[1])
    edit_json(case[1] / "adapter_config.json", lora_alpha=64)
    refused(case, VerificationError, "adapter_config.json has")


def test_an_adapter_that_is_merged_already(case):
    base, adapter, plan = case
    once = base.parent / "once"
    merge_streaming(base, adapter, once, fingerprint=None, recipe=plan, progress=False)
    refused((once, adapter, plan), VerificationError, "is merged into this base already; a second time would double its update")


def test_an_adapter_that_the_bases_record_names_as_merged(case):
    from quantkit.files import artifact_hash

    base, adapter, _ = case
    write_manifest(adapter)
    (base / "quantization_metadata.json").write_text(
        json.dumps({"parents": [{"name": "x", "artifact": artifact_hash(adapter)}]})
    )
    refused(case, VerificationError, "is merged into this base already")


def test_resized_embeddings_that_differ_from_a_tied_head(case):
    rows = torch.randn(520, 128)
    names = ("base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight")
    edit_tensors(case[1], lambda t: t | {names[0]: rows, names[1]: rows + 1})
    refused(case, VerificationError, "differ in .*adapter, which does not train them apart")


def test_a_trained_copy_that_is_missing(case):
    edit_json(case[1] / "adapter_config.json", modules_to_save=["lm_head"])
    refused(case, VerificationError, "modules_to_save is lm_head, but lm_head.weight is not stored with it")
    edit_json(case[1] / "adapter_config.json", modules_to_save=["classifier"])
    refused(case, VerificationError, "modules_to_save names 'classifier'; the base has no such module")


def test_a_trained_copy_of_another_shape(tmp_path):
    base = model_folder(tmp_path / "base")
    plan = plan_for("NoQuant")
    adapter, _ = saved_adapter(base, tmp_path / "adapter", plan, modules_to_save=("lm_head",))
    edit_tensors(adapter, lambda t: {k: v[:100].contiguous() if "lm_head" in k else v for k, v in t.items()})
    refused(
        (base, adapter, plan), VerificationError, r"lm_head.weight has the shape \[100, 128\], the base has \[512, 128\] there"
    )


@pytest.mark.parametrize("gone", ["base_model.vera_A", "base_model.vera_B"])
def test_projections_that_are_missing(tmp_path, gone):
    case = simple(tmp_path, kind="VeRa")
    edit_tensors(case[1], lambda t: {k: v for k, v in t.items() if k != gone})
    refused(case, VerificationError, "one of the shared projections base_model.vera_A and base_model.vera_B is missing")
    edit_tensors(case[1], lambda t: {k: v for k, v in t.items() if "vera_A" not in k and "vera_B" not in k})
    refused(case, VerificationError, "save_projection is true, but base_model.vera_A and base_model.vera_B are missing")


def test_projections_that_are_too_small(tmp_path):
    case = simple(tmp_path, kind="VeRa")
    edit_tensors(case[1], lambda t: t | {"base_model.vera_A": t["base_model.vera_A"][:, :64].contiguous()})
    refused(case, VerificationError, r"the shared projections are \[4, 64\] and .*; layers of up to 256 x 256 and rank 4 need")
