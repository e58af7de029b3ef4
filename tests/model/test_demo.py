"""The whole road on a real model: `quantkit demo` reaches its goals, and what it leaves loads anywhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quantkit_registry.records import read_record
from quantkit_tools.demo_model import real_model
from tests.reliability.network import without_network
from tests.tiny import CACHE

pytestmark = pytest.mark.model
PLAIN = """
import sys; sys.modules["quantkit"] = None
import json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
question = "A shop had 9 eggs and sold 4 of them. How many eggs remain?"
messages = [{"role": "system", "content": sys.argv[2]}, {"role": "user", "content": question}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs, max_new_tokens=32, do_sample=False)[0, inputs["input_ids"].shape[1]:]
text = tokenizer.decode(output, skip_special_tokens=True)
print(json.dumps({"text": text, "stopped": int(output[-1]) == tokenizer.eos_token_id}))
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a demo finished without a network; its goals (boxed and stop rate 98 %, exact match 60 %) are its exit code."""
    folder = tmp_path_factory.mktemp("demo")
    model = real_model(CACHE / "model")
    command = [sys.executable, "-m", "quantkit_tools.cli", "demo", "--folder", str(folder), "--model", str(model)]
    subprocess.run([*without_network(), *command], check=True)
    return folder


def test_the_artifact_is_what_its_record_says(demo: Path) -> None:
    (artifact,) = (demo / "artifacts").glob("SmolLM2*")
    record = read_record(artifact)
    assert artifact.name == "SmolLM2-135M-Instruct-openmath_SFT_LoRa16_QLORA_w4_headbf16_mergedbf16"
    assert record.recipe.spec.weights_dtype == "nf4"
    assert record.quantization.weights_dtype == "bfloat16"
    assert record.verification["merge"]["layers_changed"] == 210
    assert record.verification["fidelity"]["stored"]["mean_kl"] <= 1e-3


def test_plain_transformers_answers_with_it(demo: Path) -> None:
    (artifact,) = (demo / "artifacts").glob("SmolLM2*")
    prompt = read_record(artifact).data["system_prompt"]
    done = subprocess.run([sys.executable, "-c", PLAIN, str(artifact), prompt], check=True, capture_output=True, text=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert "\\boxed{" in answer["text"]
    assert answer["stopped"]
