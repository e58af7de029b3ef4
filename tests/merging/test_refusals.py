"""Is each way in which a merge goes wrong without an error elsewhere refused, in one line that names what was found?"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantkit.errors import UsageError, VerificationError
from quantkit.files import write_manifest
from quantkit.merging import merge_streaming
from quantkit.merging.refusals import check_base
from tests.bench import plan_for
from tests.merging.folders import edit_json, edit_tensors, model_folder, saved_adapter, simple, streamed

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, an adapter on it, and the plan: copied for each test."""
    return simple(tmp_path_factory.mktemp("made"))


@pytest.fixture
def case(made, tmp_path):
    """Base and adapter that a test may spoil."""
    base, adapter, plan = made
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(adapter, tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter", plan


def refused(case, kind, text, **more):
    base, adapter, plan = case
    out = base.parent / "out"
    with pytest.raises(kind, match=text):
        streamed(base, adapter, out, plan, **more)
    assert not out.exists()
    assert not list(base.parent.glob(".writing-*"))


def record_of(plan, fingerprint="sha256:right"):
    return {"base": {"fingerprint": fingerprint}, "recipe": plan.to_dict(), "adapter": plan.adapter.to_dict()}


def test_another_base_than_the_recorded_one(case):
    base, adapter, plan = case
    (adapter / "quantization_metadata.json").write_text(json.dumps(record_of(plan)))

    def merge(actual, forced=None):
        return merge_streaming(
            base, adapter, base.parent / "out", fingerprint=actual, force_base=forced, progress=False, overwrite=True
        )

    with pytest.raises(VerificationError, match=r"trained on another base: sha256:right is recorded, sha256:other is here"):
        merge("sha256:other")
    with pytest.raises(UsageError, match=r"force_base is 'sha256:oth'; this base has the fingerprint sha256:other. It must be"):
        merge("sha256:other", "sha256:oth")
    with pytest.raises(UsageError, match="records the fingerprint of its base, sha256:right; take that of the base to compare"):
        merge(None)
    forced = merge("sha256:other", "sha256:other")
    assert (forced.forced, forced.base_fingerprint, forced.recorded_fingerprint) == (True, "sha256:other", "sha256:right")
    assert merge("sha256:right").forced is False


def test_a_typed_fingerprint_that_is_not_needed_is_not_recorded_as_forced():
    assert check_base("sha256:1", "sha256:1", force_base="sha256:1", where="it") is False


def renamed(old, new):
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def without(*names):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def zeroed(tensors):
    return {name: torch.zeros_like(tensor) if "lora_B" in name else tensor for name, tensor in tensors.items()}


SPOILT = {
    "a tensor missing": (without(B), r"1 tensors of the adapter are missing, e.g. .*q_proj.lora_B.weight"),
    "a layer missing": (without(A, B), r"1 layers to be adapted have no tensors, e.g. model.layers.0.self_attn.q_proj"),
    "an unknown tensor": (
        lambda t: t | {"base_model.model.model.norm.weight": torch.ones(128)},
        r"1 tensors belong to no module of it, e.g. model.norm.weight",
    ),
    "a renamed layer": (
        renamed("0.self_attn.q_proj", "0.self_attn.q_porj"),
        r"1 have tensors but are not to be adapted, e.g. model.layers.0.self_attn.q_porj. Did you mean 'model.layers",
    ),
    "renamed throughout": (renamed("base_model.model.", ""), r"28 tensors are not those of a LoRa adapter as PEFT stores it"),
    "another kind": (renamed("lora_", "loha_"), r"tensors belong to no module of it|have no tensors"),
    "another shape": (
        lambda t: t | {A: t[A][:, :64].contiguous()},
        r"q_proj \(A\) has the shape \[4, 64\]; a layer of 128 x 128 and rank 4 takes \[4, 128\]",
    ),
    "never trained": (zeroed, "all B matrices are zero; the adapter was never trained"),
    "nan": (lambda t: t | {A: torch.full_like(t[A], float("nan"))}, r"q_proj \(A\) holds values that are not finite"),
    "infinity": (lambda t: t | {B: torch.full_like(t[B], float("inf"))}, r"q_proj \(B\) holds values that are not finite"),
    "integers": (lambda t: t | {A: t[A].int()}, r"q_proj.lora_A.weight is stored as I32; adapters are floating point"),
    "empty": (lambda _: {}, "the adapter holds no tensors"),
}


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


def test_tied_embeddings_that_differ(case):
    base = case[0]
    tensors = load_file(base / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] * 2}, base / "model.safetensors")
    refused(
        case,
        VerificationError,
        "head and embeddings are tied, but lm_head.weight and model.embed_tokens.weight are stored with",
    )
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, base / "model.safetensors")
    assert "lm_head.weight" not in streamed(*case[:2], base.parent / "out", case[2])


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


def test_a_shard_that_was_cut_short(case):
    path = case[0] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    refused(case, UsageError, r"model.safetensors: tensor .* lie outside the file")


def test_a_shard_that_is_missing(made, tmp_path):
    base = model_folder(tmp_path / "base", max_shard_size="200KB")
    sorted(base.glob("*.safetensors"))[1].unlink()
    refused((base, made[1], made[2]), UsageError, "cannot be read: No such file")


def test_a_base_of_other_sizes(made, tmp_path):
    base = model_folder(tmp_path / "base", hidden_size=64)
    refused((base, made[1], made[2]), VerificationError, "The adapter belongs to another base, or its configuration was edited")


def test_a_base_with_values_that_are_not_finite(case):
    path = case[0] / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, path)
    refused(case, VerificationError, "model.norm.weight: the base holds values that are not finite; nothing was written")


def test_values_that_float16_cannot_hold(case):
    path = case[0] / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = 1e6
    save_file(tensors, path)
    refused(case, VerificationError, "model.norm.weight: too large for torch.float16; nothing was written", dtype="float16")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"peft_type": "LOHA"}, "adapters of type LOHA cannot be folded in; LoRA, DoRA and VeRA can"),
        ({"lora_bias": True}, "lora_bias gives adapters a bias of their own; it cannot be folded in"),
        ({"bias": "all"}, "bias is 'all': trained biases cannot be folded in; 'none' can"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changed the base's weights when training began"),
        ({"use_something_new": True}, "use_something_new is a setting that is not known here; it cannot be folded in"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices trains single rows of the embeddings"),
        ({"r": 0}, "r is '0'; a whole number from 1 on is wanted"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'; a number is wanted"),
        ({"use_dora": "yes"}, "use_dora is 'yes'; true or false is wanted"),
        ({"rank_pattern": {"(": 2}}, r"rank_pattern has the pattern '\(', which is no regular expression"),
        ({"alpha_pattern": [1]}, r"alpha_pattern is '\[1\]'; an object of patterns is wanted"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head'; a list of module names is wanted"),
        ({"target_modules": None}, "target_modules is 'None'; names, or a regular expression, are wanted"),
        ({"target_modules": "("}, r"target_modules '\(' is no regular expression"),
    ],
)
def test_settings_that_cannot_be_folded(case, change, text):
    edit_json(case[1] / "adapter_config.json", **change)
    refused(case, UsageError, text)


def test_a_recipe_that_nothing_records(case):
    base, adapter, _ = case
    with pytest.raises(UsageError, match="which quantization its base had in training is recorded nowhere; name its recipe"):
        streamed(base, adapter, base.parent / "out", None)


def test_a_recipe_whose_quantized_base_is_a_folder_of_its_own(case):
    refused(
        (*case[:2], plan_for("QLORA", calibrated=True)),
        UsageError,
        "QLORA made the training base a quantized folder of its own",
    )


def test_a_data_type_that_is_none(case):
    refused(
        case, UsageError, "dtype 'int8' with lm_head_dtype None: merged weights are bfloat16, float16, float32", dtype="int8"
    )


def test_folders_that_are_no_adapter_or_base(case):
    base, adapter, plan = case
    refused(
        (base, base, plan), UsageError, "not an adapter folder; adapter_config.json and adapter_model.safetensors are needed"
    )
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(b"")
    refused(case, UsageError, "the weights are pickled")


def test_an_output_folder_that_exists(case):
    (case[0].parent / "out").mkdir()
    with pytest.raises(UsageError, match="exists; choose another output folder"):
        streamed(case[0], case[1], case[0].parent / "out", case[2])


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
