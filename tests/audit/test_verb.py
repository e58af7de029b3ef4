"""`quantkit audit` from files to exit code, on results that the evaluation itself wrote and on those that lie."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quantkit.files import artifact_hash, write_manifest
from quantkit_registry.store import Registry
from quantkit_tools.cli import run_verb
from tests.audit import files


@pytest.fixture(scope="module")
def evaluated(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a result of the tiny model, on questions whose answers it mostly knows: its own."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from quantkit.evaluation.generation import generate, stop_token_ids
    from quantkit.evaluation.rendering import render
    from quantkit.evaluation.sources import read_tasks

    folder, task = tmp_path_factory.mktemp("evaluated"), read_tasks(limit=40)[0]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    prompts = [row.prompt_ids for row in render(task, tokenizer, stop_token_ids(model, tokenizer))]
    said = [answer.text for answer in generate(model, tokenizer, prompts, batch_size=16, max_new_tokens=32)]
    answers = [text if index % 6 else "\\boxed{3}" for index, text in enumerate(said)]
    rows = [
        {"messages": [{"role": "user", "content": example.question}, {"role": "assistant", "content": answer}]}
        for example, answer in zip(task.examples, answers, strict=True)
        if task.parse(answer) is not None
    ]
    (folder / "known.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--data", str(folder / "known.jsonl"), "--max-new-tokens", "32", "--registry", str(folder / "registry")]
    assert run_verb("evaluate", [str(tiny_model), *flags]) == 0
    return folder / "registry"


def test_nothing_is_wrong_with_what_the_evaluation_wrote(evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb("audit", [str(evaluated), "--json", "--strict"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["findings"] == []
    assert [(item["kind"], item["models"]) for item in printed["files"]] == [("quantkit", ["Tiny-Llama"])]


def test_a_result_changed_by_hand_ends_with_code_3(evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(evaluated, tmp_path / "r")
    (file,) = (tmp_path / "r").rglob("known.json")
    data = json.loads(file.read_text())
    data["rows"][1]["correct"] = not data["rows"][1]["correct"]
    file.write_text(json.dumps(data))
    assert run_verb("audit", [str(tmp_path / "r")]) == 3
    assert "rows disagree" in capsys.readouterr().out


@pytest.fixture
def filed(tiny_model: Path, tmp_path: Path) -> tuple[Registry, Path]:
    """A registry with one artifact of ours and its result."""
    name = "Tiny-sums_SFT_LoRa4_QLORA_w4_headbf16"
    made(tmp_path, "Tiny-other_SFT_LoRa4_QLORA_w4_headbf16", base=tiny_model)
    here = artifact_hash(made(tmp_path, name, base=tiny_model))
    assert here is not None
    registry = Registry(tmp_path)
    return registry, registry.add_result(here, "sums", files.quantkit_result(name=name, artifact=here))


def made(root: Path, name: str, *, base: Path, overlap: int = 0) -> Path:
    """Write an adapter's folder with all that the registry looks at."""
    from quantkit.methods import installed_methods
    from quantkit.plan import AdapterPlan, PlanContext
    from quantkit_registry.records import ArtifactRecord, BaseReference, write_record

    plan = installed_methods().plan("QLORA", {}, PlanContext(adapter=AdapterPlan(r=4)))
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    record = ArtifactRecord(
        name=name,
        kind="adapter",
        quantization=plan.spec,
        recipe=plan,
        adapter=plan.adapter,
        base=BaseReference(name_or_path=str(base)),
        data={"overlap": overlap},
    )
    write_record(folder, record)
    write_manifest(folder)
    return folder


def test_results_of_artifacts_as_they_stand_are_sound(filed: tuple[Registry, Path]) -> None:
    assert run_verb("audit", [str(filed[0].root), "--strict"]) == 0


def test_a_folder_of_results_alone_misses_no_artifact(filed: tuple[Registry, Path], tmp_path: Path) -> None:
    shutil.copytree(filed[0].root / "results", tmp_path / "elsewhere" / "results")
    assert run_verb("audit", [str(tmp_path / "elsewhere"), "--strict"]) == 0


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ("artifact", 3, "has other content now"),
        ("gone", 0, "no artifact of this name or hash stands in"),
        ("broken", 0, "is broken: "),
        ("renamed", 3, "filed as other, but says task sums"),
        ("moved", 3, "but measured on "),
        ("label", 3, "the artifact's record QLORA, 4 bits"),
        ("overlap", 0, "3 questions of the set it was judged on in training also stood in its training data"),
    ],
)
def test_results_that_do_not_belong_to_what_stands_there(
    change: str, code: int, said: str, filed: tuple[Registry, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    registry, file = filed
    folder = registry.find("Tiny-sums_SFT_LoRa4_QLORA_w4_headbf16").path
    if change == "artifact":
        (folder / "adapter_config.json").write_text('{"r": 4}')
        write_manifest(folder)
    elif change == "gone":
        shutil.rmtree(folder)
    elif change == "broken":
        (folder / "quantkit_manifest.json").unlink()
    elif change == "renamed":
        file.rename(file.with_name("other.json"))
    elif change == "overlap":
        here = artifact_hash(made(registry.root, folder.name, base=folder, overlap=3))
        assert here is not None
        shutil.rmtree(file.parent)
        registry.add_result(here, "sums", files.quantkit_result(name=folder.name, artifact=here))
    elif change == "moved":
        target = file.parent.with_name("0" * 64)
        file.parent.rename(target)
    else:
        data = json.loads(file.read_text())
        data["artifact"]["quantization"]["method"] = "HQQ"
        file.write_text(json.dumps(data))
    assert run_verb("audit", [str(registry.root)]) == code
    printed = " ".join(capsys.readouterr().out.split())
    assert said in printed
    assert run_verb("audit", [str(registry.root), "--strict"]) == 3


def test_the_exit_code_is_that_of_the_worst(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound, faulty, broken = tmp_path / "sound", tmp_path / "faulty.json", tmp_path / "broken.json"
    files.write_json(sound / "study.json", files.healthy_study())
    files.write_json(faulty, files.math_metrics())
    broken.write_text("{")
    warned = files.write_json(tmp_path / "warned.json", files.lm_eval_results(config={"limit": 100}))
    assert run_verb("audit", [str(sound)]) == 0
    assert run_verb("audit", [str(warned)]) == 0
    assert run_verb("audit", [str(warned), "--strict"]) == 3
    assert run_verb("audit", [str(sound), str(broken)]) == 2
    assert "could not be read: " in capsys.readouterr().err
    assert run_verb("audit", [str(faulty), str(broken)]) == 3


@pytest.mark.parametrize("width", [80, 160])
def test_the_tables_fit_and_keep_what_was_found_and_needed(
    width: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(tmp_path)
    files.write_csv(tmp_path / "summary.csv", files.math_summary())
    files.write_json(tmp_path / "metrics.json", files.math_metrics())
    assert run_verb("audit", ["."]) == 3
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines() if ": read " not in line) <= width
    for shown in ("silent leader", "45 of 50 answers say nothing", "→ ", "9 errors"):
        assert shown in text
    assert "summary.csv: read model_name as model, mean_abs_difference, avg_latency_s as latency_s" in text


def test_json_is_one_object_with_a_place_for_every_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write_csv(tmp_path / "summary.csv", files.labels_summary())
    assert run_verb("audit", [str(tmp_path), "--json"]) == 3
    printed = json.loads(capsys.readouterr().out)
    assert printed["schema_version"] == 1
    for finding in printed["findings"]:
        assert all(finding[key] for key in ("severity", "check", "file", "model", "where", "found", "needed"))
    assert {item["best"] for item in printed["differences"]} == {"Big-23B-base"}
    assert printed["files"][0]["understood"]["quant_method"] == "method"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "no path was given"), (["/nowhere/at/all"], "no such file or folder"), (["EMPTY"], "no result file in it")],
)
def test_what_cannot_be_audited_is_one_line_and_code_2(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb("audit", [{"EMPTY": str(tmp_path)}.get(word, word) for word in arguments]) == 2
    assert said in capsys.readouterr().err


def test_an_audit_needs_no_torch(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", files.quantkit_result())
    files.write_json(tmp_path / "b.json", files.quantkit_result(right=30, artifact="ef" * 32, name="Tiny-Llama"))
    code = (
        "import sys\nfrom quantkit_tools.cli import main\n"
        f"code = main(['audit', {str(tmp_path)!r}])\n"
        "sys.exit(9 if {'torch', 'transformers', 'pandas'} & set(sys.modules) else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "Against the best" in done.stdout
