"""Does every load end in a measured model or in one line that says what is wrong?"""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from quantkit import QuantizationSpec
from quantkit.errors import UsageError, VerificationError
from quantkit.methods import installed_methods
from quantkit.modeling import (
    ModelSource,
    attach_adapter,
    load_base,
    load_source,
    load_tokenizer,
    resolve_compute_dtype,
    resolve_device,
)
from quantkit.skeleton import read_skeleton
from tests.bench import difference, load, logits, plan_for, train_step

DENSE = QuantizationSpec.dense("bfloat16")


@pytest.fixture
def copy_of_tiny(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def load_dense(path):
    return load_base(str(path), plan=plan_for("NoQuant"), methods=installed_methods(), device="cpu")


def test_importing_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, quantkit.modeling; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("path", ["./no/such", "/no/such", "a/b/c", "~/model"])
def test_a_missing_folder_is_one_line_and_not_looked_for_on_the_hub(path):
    with pytest.raises(UsageError, match="no such folder; it looks like a local path, so it was not looked for on the hub"):
        load_dense(path)


def test_a_missing_hub_id_names_both_possibilities(monkeypatch):
    monkeypatch.setattr("quantkit.hub._found", [""])  # as if the hub had answered
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"^nobody/nothing: no such folder, and the hub gave no model of this name") as caught:
        load_dense("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_a_missing_tokenizer_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="the tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path))


def test_the_tokenizer_is_loaded(tiny_model):
    assert load_tokenizer(str(tiny_model)).eos_token == "<|im_end|>"


def test_a_file_is_no_model(tiny_model):
    with pytest.raises(UsageError, match="a file; a model is a folder"):
        load_dense(tiny_model / "config.json")


@pytest.mark.parametrize("read", [load_dense, read_skeleton])
def test_a_folder_without_config_is_no_model(read, tmp_path):
    with pytest.raises(UsageError, match=r"no config.json: not a model folder"):
        read(str(tmp_path))


@pytest.mark.parametrize("read", [load_dense, read_skeleton])
def test_an_adapter_folder_is_not_loaded_as_a_model(read, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"no config.json: an adapter; fold it in \(quantkit merge\) or name its base"):
        read(str(tmp_path))


def test_a_folder_without_weights_is_no_model(copy_of_tiny):
    (copy_of_tiny / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"no \*.safetensors weights"):
        load_dense(copy_of_tiny)


def test_pickled_weights_are_refused(copy_of_tiny):
    (copy_of_tiny / "model.safetensors").rename(copy_of_tiny / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"weights are pickled \(pytorch_model.bin\), which can run code"):
        load_dense(copy_of_tiny)


def test_truncated_weights_are_one_line(copy_of_tiny):
    weights = copy_of_tiny / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UsageError, match="the model cannot be loaded: SafetensorError"):
        load_dense(copy_of_tiny)


def test_a_weight_that_the_checkpoint_lacks_is_not_made_up(copy_of_tiny):
    config = json.loads((copy_of_tiny / "config.json").read_text())
    (copy_of_tiny / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(VerificationError, match=r"9 weights .* missing .* e.g. model.layers.4.input_layernorm.weight"):
        load_dense(copy_of_tiny)


def test_a_model_type_that_transformers_does_not_know_is_one_line(copy_of_tiny):
    (copy_of_tiny / "config.json").write_text(json.dumps({"model_type": "martian"}))
    with pytest.raises(UsageError, match="the model cannot be loaded: ValueError") as caught:
        load_dense(copy_of_tiny)
    assert "\n" not in str(caught.value)


def test_a_quantization_that_was_silently_ignored_is_an_error(tiny_model, monkeypatch):
    methods = installed_methods()
    monkeypatch.setattr(methods, "load_kwargs", lambda _plan: {})
    with pytest.raises(VerificationError, match="Tiny-Llama: the model in memory is not what its QLORA spec says"):
        load_base(str(tiny_model), plan=plan_for("QLORA"), methods=methods, device="cpu")


def test_a_method_that_needs_calibration_says_so(tiny_model, monkeypatch):
    methods = installed_methods()
    info = replace(methods.info("NoQuant"), calibration="required")
    monkeypatch.setattr(methods, "info", lambda _name: info)
    with pytest.raises(UsageError, match="NoQuant quantizes with calibration data; none was given"):
        load_base(str(tiny_model), plan=plan_for("NoQuant"), methods=methods, device="cpu")


def test_a_stored_model_is_loaded_as_it_is(tiny_model):
    model = load_source(ModelSource(path=str(tiny_model), spec=DENSE), installed_methods(), device="cpu")
    assert model.dtype == torch.bfloat16


def test_a_stored_model_that_is_not_what_its_metadata_says_is_an_error(tiny_model):
    source = ModelSource(path=str(tiny_model), spec=QuantizationSpec.dense("float32"))
    with pytest.raises(VerificationError, match="weights_bits is 16, not 32"):
        load_source(source, installed_methods(), device="cpu")


@pytest.mark.parametrize("method", ["INT8", "BNB4BIT", "QLORA"])
def test_a_stored_quantized_model_loads_and_computes_the_same(method, tiny_model, tmp_path):
    plan = plan_for(method, dtype="bfloat16")
    model = load(tiny_model, plan)
    model.save_pretrained(tmp_path)
    again = load_source(ModelSource(path=str(tmp_path), spec=plan.spec), installed_methods(), device="cpu")
    assert difference(logits(again), logits(model)) == 0


@pytest.fixture(params=[("QLORA", "LoRa"), ("BNB4BIT", "VeRa"), ("INT8", "DoRa"), ("NoQuant", "DoRa")], ids=str)
def kept_adapter(request, tiny_model, tmp_path):
    """A trained adapter, saved without its base: (source, logits)."""
    plan = plan_for(*request.param, dtype="bfloat16")
    model = attach_adapter(installed_methods().prepare_model(plan, load(tiny_model, plan)), plan.adapter, seed=0)
    train_step(model)
    model.save_pretrained(tmp_path)
    source = ModelSource(path=str(tmp_path), kind="adapter", base=str(tiny_model), plan=plan, spec=plan.spec)
    return source, logits(model)


def test_a_kept_adapter_comes_back_on_exactly_its_base(kept_adapter):
    source, before = kept_adapter
    assert difference(logits(load_source(source, installed_methods(), device="cpu")), before) == 0


@pytest.fixture
def adapter(tiny_model, tmp_path):
    model = attach_adapter(load_dense(tiny_model), plan_for("NoQuant").adapter, seed=0)
    train_step(model)
    model.save_pretrained(tmp_path)
    plan = plan_for("NoQuant")
    return ModelSource(path=str(tmp_path), kind="adapter", base=str(tiny_model), plan=plan, spec=plan.spec)


def change_tensors(source, change):
    from pathlib import Path

    from safetensors.torch import load_file, save_file

    file = Path(source.path) / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda stored: {name.replace("q_proj", "p_proj"): item for name, item in stored.items()}, "do not fit"),
        (lambda stored: {name: item * 0 if "lora_B" in name else item for name, item in stored.items()}, "never trained"),
        (lambda stored: {name: item * float("nan") for name, item in stored.items()}, "not finite"),
    ],
)
def test_an_adapter_with_wrong_tensors_is_refused(adapter, change, text):
    change_tensors(adapter, change)
    with pytest.raises(VerificationError, match=text):
        load_source(adapter, installed_methods(), device="cpu")


def test_an_adapter_without_safetensors_is_refused(adapter, tmp_path):
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(UsageError, match="not an adapter folder"):
        load_source(adapter, installed_methods(), device="cpu")


def test_an_adapter_without_a_base_is_an_error(adapter):
    with pytest.raises(UsageError, match="the adapter names no base model; pass the base it was trained on"):
        load_source(replace(adapter, base=None), installed_methods(), device="cpu")


def test_an_adapter_without_a_recipe_comes_on_the_dense_base_that_its_spec_states(adapter):
    model = load_source(replace(adapter, plan=None), installed_methods(), device="cpu")
    assert model.base_model.model.dtype == torch.float32


def test_a_recipe_that_contradicts_the_metadata_is_an_error(adapter):
    with pytest.raises(VerificationError, match="its recipe says weights_bits 32, its metadata 16"):
        load_source(replace(adapter, spec=DENSE), installed_methods(), device="cpu")


def test_auto_picks_a_device_and_a_data_type_that_are_there():
    device = resolve_device("auto")
    assert device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_compute_dtype("auto", device) in ("bfloat16", "float16", "float32")
    assert resolve_compute_dtype("float16", "cpu") == "float16"


def test_a_cpu_without_bfloat16_computes_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert resolve_compute_dtype("auto", "cpu") == "float32"


def test_devices_and_data_types_that_are_not_there_are_errors():
    with pytest.raises(UsageError, match="device is 'cuda:99' but torch sees"):
        resolve_device("cuda:99")
    with pytest.raises(UsageError, match="device is 'gpu'; use auto, cpu, cuda or cuda:N"):
        resolve_device("gpu")
    with pytest.raises(UsageError, match="compute_dtype is 'int8'; use auto, bfloat16, float16, float32"):
        resolve_compute_dtype("int8", "cpu")
