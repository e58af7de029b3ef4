"""Is a base refused that is not the adapter's, or is damaged, in one line that names what was found?"""

import json

import pytest
from safetensors.torch import load_file, save_file

from quantkit.errors import UsageError, VerificationError
from quantkit.merging import merge_streaming
from quantkit.merging.refusals import check_base
from tests.merging.folders import model_folder, streamed
from tests.merging.spoilt import record_of, refused


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
