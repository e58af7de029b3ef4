"""From Python the verbs do what they do on a command line, and say what is wrong by exceptions."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantkit.config import RunConfig
from quantkit.errors import QuantkitError, UsageError, VerificationError
from quantkit_tools import api, verb_process

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M | re.S)


def test_train_load_and_evaluate_see_one_model(tiny_model: Path, rows: Path, held_out: Path, tmp_path: Path) -> None:
    from quantkit.backends import dtype_name
    from quantkit.computing import device_dtype
    from quantkit.evaluation.run import evaluate_model
    from quantkit.evaluation.sources import read_tasks

    made = api.train(
        model=tiny_model, dataset=f"openmath:{rows}", quant_bits=4, lora_rank=4, max_steps=4, learning_rate=1e-2,
        batch_size=8, merge_after_train=False, output_dir=tmp_path,
    )  # fmt: skip
    model, tokenizer = api.load(made.path.name, registry=tmp_path)
    flags = {"limit": 3, "max_new_tokens": 8, "latency_prompts": 0}
    found = api.evaluate(made.path, held_out, **flags, registry=tmp_path)

    assert (made.record.kind, made.record.quantization.weights_dtype) == ("adapter", "nf4")
    assert type(model.get_base_model().model.layers[0].mlp.up_proj.base_layer).__name__ == "Linear4bit"
    assert dtype_name(model.dtype) == device_dtype("cpu")
    prompt = made.record.data["system_prompt"]
    tasks = read_tasks([str(held_out)], kind="auto", limit=3, seed=0, system_prompt=prompt)
    (here,) = evaluate_model(model, tokenizer, tasks, max_new_tokens=8)
    (there,) = found["artifacts"][0]["results"]
    assert [row["text"] for row in there["rows"]] == [row.text for row in here.rows]
    assert [row["nll"] for row in there["rows"]] == pytest.approx([row.nll for row in here.rows], rel=1e-5)
    assert there["settings"]["system_prompt"] == prompt
    assert api.detect(made.path.name, registry=tmp_path).to_dict()["method"] == "QLORA"


@pytest.fixture
def registry(tmp_path: Path, read_json: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of its own, named by the environment; verbs that should have processes of their own run in this one."""
    monkeypatch.setenv("QUANTKIT_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setattr(verb_process, "answer_of", lambda words: capsys.readouterr() and read_json(*words))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "registry"


@pytest.mark.parametrize("code", [block for block in BLOCKS if "quantkit_tools" in block], ids=lambda _: "block")
def test_the_readmes_lines_run(code: str, tiny_model: Path, rows: Path, held_out: Path, registry: Path) -> None:
    code = code.replace("Qwen/Qwen3-0.6B", str(tiny_model)).replace("train.parquet", str(rows))
    exec(code.replace("test.parquet", str(held_out)), {})
    assert len(list(registry.glob("Tiny-Llama-*"))) == 1


def test_what_is_wrong_is_an_exception(kept: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = RunConfig(model_name_or_path=str(tiny_model))
    with pytest.raises(UsageError, match=r"'lora_rr' is no setting .* Did you mean 'lora_r'"):
        api.train(model=tiny_model, lora_rr=4)
    with pytest.raises(UsageError, match=r"beside it \(seed\); use config\.with_changes\(seed=\.\.\.\)"):
        api.train(config, seed=1)
    with pytest.raises(UsageError, match="no such file or folder"):
        api.load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="--dtype is 'int8'; use auto"):
        api.load(tiny_model, dtype="int8")
    edited = Path(shutil.copytree(kept, tmp_path / "edited"))
    settings = json.loads((edited / "adapter_config.json").read_text())
    (edited / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 80}))
    with pytest.raises(VerificationError, match="adapter_config"):
        api.load(edited)
    with pytest.raises(UsageError, match=r"--limt.*--limit"):
        api.evaluate(tiny_model, limt=3)


def test_paths_that_fail_one_and_all_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    failed = [{"path": "a", "error": "differs", "exit_code": 3}]
    answer: dict[str, Any] = {"artifacts": [], "failed": failed}

    def answer_of(words: list[str]) -> dict[str, Any]:
        asked.append(words)
        return answer

    monkeypatch.setattr(verb_process, "answer_of", answer_of)
    with pytest.raises(VerificationError, match=r"^a: differs$"):
        api.evaluate(["a", Path("b")], ["x.jsonl", Path("y.jsonl")], limit=2, fresh=True)
    assert asked == [["evaluate", "a", "b", "--data", "x.jsonl,y.jsonl", "--limit", "2", "--fresh"]]
    answer["artifacts"] = [{"name": "b"}]
    assert api.evaluate(["a", "b"])["failed"] == failed


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", QuantkitError, "ended by SIGKILL"),
        ("import sys; print('loading', file=sys.stderr); sys.exit('error: not there')", QuantkitError, "^not there$"),
        ("import sys; sys.exit(3)", VerificationError, "exit code 3: nothing was printed"),
        ("import sys; sys.exit(130)", KeyboardInterrupt, "^$"),
    ],
)
def test_how_a_verbs_process_ended_is_an_exception(
    code: str, kind: type[BaseException], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verb_process, "command_line", lambda _: [sys.executable, "-c", code])
    with pytest.raises(kind, match=said) as caught:
        verb_process.answer_of(["evaluate"])
    assert caught.type is kind
    assert capsys.readouterr().err == ("loading\n" if "loading" in code else "")


def test_an_interruption_ends_the_verbs_process_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_stream: Any) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(verb_process, "_passed_on", interrupted)
    monkeypatch.setattr(verb_process, "command_line", lambda _: ["sleep", "600"])
    with pytest.raises(KeyboardInterrupt):  # and not after ten minutes: its output is read to the end first
        verb_process.answer_of(["evaluate"])


def test_an_interrupted_run_is_an_interruption(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = SimpleNamespace(interrupted=True, steps=1, total_steps=2)
    monkeypatch.setattr("quantkit_tools.stages.train", lambda *_: ended)
    with pytest.raises(KeyboardInterrupt, match="resume_from_checkpoint=True goes on from it"):
        api.train(model=tiny_model, dataset=f"openmath:{rows}", max_steps=2, lora_r=4, output_dir=tmp_path)
    assert not list(tmp_path.glob("Tiny-Llama*"))


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, quantkit_tools.api; sys.exit(bool({'torch', 'transformers', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
