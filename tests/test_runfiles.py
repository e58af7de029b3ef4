"""Files of one or many runs: what is read, and what is refused with file, run and key."""

import json
from pathlib import Path

import pytest

from quantkit.config import RunConfig
from quantkit.errors import UsageError
from quantkit.runfiles import MAX_BYTES, choose_run, place, read_run_values
from tests.settings_methods import settings_methods

METHODS = settings_methods()

FINANCE_STUDY = """{
  "sentiment_8bits_r8": {
    "base_model": "meta-llama/Llama-3.1-8B-Instruct", "dataset_path": "../data/train/sentiment_train.jsonl",
    "lora_r": 8, "quant_bits": 8, "learning_rate": 0.0001, "num_epochs": 4, "batch_size": 8,
    "gradient_accumulation_steps": 2
  },
  "xbrl_4bits_r4": {
    "base_model": "meta-llama/Llama-3.1-8B-Instruct", "dataset_path": "../data/train/xbrl_train.jsonl",
    "lora_r": 4, "quant_bits": 4, "learning_rate": 1e-4, "num_epochs": 1, "batch_size": 1,
    "gradient_accumulation_steps": 8, "peft_use_dora": false, "peft_use_rslora": false
  },
  "ner_8bits_r8_dora": {
    "base_model": "meta-llama/Llama-3.1-8B-Instruct", "dataset_path": "../data/train/ner_train.jsonl",
    "lora_r": 8, "quant_bits": 8, "learning_rate": 0.0001, "num_epochs": 4, "batch_size": 8,
    "gradient_accumulation_steps": 2, "peft_use_dora": true
  },
  "finer_4bits_r4_rslora": {
    "base_model": "meta-llama/Llama-3.1-8B-Instruct", "dataset_path": "../data/train/finer_train.jsonl",
    "lora_r": 4, "quant_bits": 4, "learning_rate": 0.0001, "num_epochs": 4, "batch_size": 8,
    "gradient_accumulation_steps": 2, "peft_use_rslora": true
  }
}"""


def file_with(tmp_path: Path, text: str, name: str = "runs.json") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def read_runs(path: Path) -> dict[str, RunConfig]:
    runs = read_run_values(path)
    return {name: RunConfig.from_mapping(runs[name], where=place(path, name, runs), methods=METHODS) for name in runs}


def read_run(path: Path, name: str | None = None) -> RunConfig:
    runs = read_run_values(path)
    name = choose_run(path, runs, name)
    return RunConfig.from_mapping(runs[name], where=place(path, name, runs), methods=METHODS)


def refused(path: Path, run: str | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        read_run(path, run)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_finance_studys_file_is_read_unchanged(tmp_path: Path) -> None:
    runs = read_runs(file_with(tmp_path, FINANCE_STUDY))
    assert list(runs) == ["sentiment_8bits_r8", "xbrl_4bits_r4", "ner_8bits_r8_dora", "finer_4bits_r4_rslora"]
    assert runs["xbrl_4bits_r4"] == RunConfig(
        model_name_or_path="meta-llama/Llama-3.1-8B-Instruct",
        dataset_name="../data/train/xbrl_train.jsonl",
        quant_method="QLORA",
        lora_r=4,
        learning_rate=1e-4,
        num_train_epochs=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
    )
    kinds = [(config.quant_method, config.peft_config, config.use_rslora) for config in runs.values()]
    assert kinds == [("INT8", "LoRa", False), ("QLORA", "LoRa", False), ("INT8", "DoRa", False), ("QLORA", "LoRa", True)]


def test_json_toml_and_yaml_say_the_same(tmp_path: Path) -> None:
    data = {"model": "m", "lora_r": 8, "learning_rate": 1e-3, "target_modules": ["q_proj"]}
    toml = 'model = "m"\nlora_r = 8\nlearning_rate = 1e-3\ntarget_modules = ["q_proj"]\n'
    yaml = "model: m\nlora_r: 8\nlearning_rate: 1e-3\ntarget_modules: [q_proj]\n"
    files = [
        file_with(tmp_path, json.dumps(data)),
        file_with(tmp_path, toml, "runs.toml"),
        file_with(tmp_path, yaml, "runs.yaml"),
        file_with(tmp_path, "\ufeff" + yaml, "runs.yml"),
    ]
    first, *others = [read_run(path) for path in files]
    assert first.learning_rate == 1e-3
    assert others == [first] * 3


def test_named_runs_in_toml_and_yaml(tmp_path: Path) -> None:
    toml = file_with(tmp_path, '[fast]\nmodel = "m"\nlora_r = 4\n[slow]\nmodel = "m"\n', "runs.toml")
    yaml = file_with(tmp_path, "fast:\n  model: m\n  lora_r: 4\nslow:\n  model: m\n", "runs.yaml")
    assert read_runs(toml) == read_runs(yaml)
    assert read_run(toml, "fast").lora_r == 4


def test_a_one_run_file_may_hold_method_options_as_an_object(tmp_path: Path) -> None:
    path = file_with(tmp_path, '{"model": "m", "quant_method": "BNB4BIT", "method_options": {"quant_type": "fp4"}}')
    assert read_runs(path)["runs"].method_options == {"quant_type": "fp4"}


def test_the_only_named_run_needs_no_choice(tmp_path: Path) -> None:
    assert read_run(file_with(tmp_path, '{"only": {"model": "m"}}')).model_name_or_path == "m"


def test_a_run_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    path = file_with(tmp_path, '{"fast": {"model": "m"}, "slow": {"model": "m"}}')
    assert refused(path) == f"{path}: holds 2 runs; choose one with --run. Known: fast, slow."
    assert refused(path, "fsat") == f"{path}: no run is called 'fsat'. Did you mean 'fast'? Known: fast, slow."
    many = file_with(tmp_path, json.dumps({f"r{i}": {"model": "m"} for i in range(20)}), "many.json")
    assert refused(many).endswith("r10, r11, … (20 runs).")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", '{"fast": {"model": "m", "lora_rr": 8}}', "a.json: run 'fast': 'lora_rr' is no setting and no option"),
        ("a.json", '{"model": "m", "lora_r": 0}', "a.json: lora_r is 0; it must be between 1 and 65536"),
        ("a.json", '{"model": "m", "model": "n"}', "a.json: the key 'model' stands twice in one object"),
        ("a.yaml", "model: m\nmodel: n\n", "a.yaml: the key 'model' stands twice in one object"),
        ("a.toml", 'model = "m"\nmodel = "n"\n', "a.toml: not valid TOML: Cannot overwrite a value"),
        ("a.json", '{"model": "m",}', "a.json: not valid JSON: "),
        ("a.json", '{"model": "m", "learning_rate": NaN}', "a.json: not valid JSON: NaN is no JSON number"),
        ("a.json", "[" * 100_000, "a.json: not valid JSON: "),
        ("a.yaml", "model: [m\n", "a.yaml: not valid YAML: "),
        ("a.yaml", "model: !!python/object/apply:os.system ['true']\n", "a.yaml: not valid YAML: could not determine a con"),
        ("a.yaml", "a: &x {model: m}\nb: *x\n", "a.yaml: YAML aliases (*name) are not read; write the value out"),
        ("a.yaml", "{a: b}: c\n", "a.yaml: not valid YAML: "),
        ("a.yaml", "[" * 5_000, "a.yaml: not valid YAML: "),
        ("a.yaml", "1: {model: m}\n", "a.yaml: the key 1 is no text"),
        ("a.json", "[]", "a.json: holds a list; an object of settings, or of named runs, is wanted"),
        ("a.json", "{}", "a.json: holds an empty object; an object"),
        ("a.yaml", "", "a.yaml: holds nothing; an object"),
        ("a.json", '{"fast": {"model": "m"}, "lora_r": 8}', "a.json: 'lora_r' is a int but 'fast' is an object; a file holds"),
        ("a.ini", "model=m", "a.ini: run files end in .json, .toml, .yaml, .yml"),
    ],
)
def test_a_file_that_is_no_run_file_is_refused_with_its_name(tmp_path: Path, name: str, text: str, said: str) -> None:
    assert refused(file_with(tmp_path, text, name)).startswith(f"{tmp_path}/{said}")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.json") == f"{tmp_path}/none.json: cannot be read: No such file or directory"
    latin = tmp_path / "latin.json"
    latin.write_bytes(b'{"model": "\xe9"}')
    assert refused(latin) == f"{latin}: not UTF-8: byte 0xe9 at offset 11"
    big = tmp_path / "big.json"
    with big.open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    assert refused(big) == f"{big}: {MAX_BYTES + 1} bytes; at most {MAX_BYTES} are read"
