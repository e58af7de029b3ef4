"""What `quantkit quantize` makes, refuses, marks and finishes after it was killed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from quantkit import gate
from quantkit_registry.records import read_record
from quantkit_registry.store import Registry
from quantkit_tools.cli import run_verb

SCRIPT = Path(__file__).parents[2] / "tools" / "quantize.py"
NAME = "Tiny-Llama-base_RTN_w4_g32_headbf16"
SLOW = '''
    """Rounding block by block on calibration text, with a pause after each block."""
    import os, time
    from dataclasses import dataclass
    from quantkit import MethodInfo, QuantizationPlan, QuantizationSpec, Stage, hookimpl

    @dataclass(frozen=True)
    class Options:
        group_size: int = 32

    @hookimpl
    def declare_method():
        return MethodInfo("Slow", "rounds slowly", Options, stages=frozenset({Stage.TRAINED}), calibration="required")

    @hookimpl
    def build_quantization_plan(options, context):
        spec = QuantizationSpec(method="Slow", weights_bits=4, weights_dtype="int4", format="compressed-tensors",
                                group_size=options.group_size, symmetric=True, lm_head_dtype=context.head_dtype)
        return QuantizationPlan(method="Slow", stage=context.stage, spec=spec, adapter=context.adapter,
                                options={"group_size": options.group_size}, compute_dtype=context.compute_dtype)

    @hookimpl
    def quantize_model(plan, model, calibration, work):
        from quantkit.numerics.grids import quantize
        from quantkit.quantizing import solve_blocks, store_in_format, uniform_grid
        grid = uniform_grid(plan.spec, model.dtype)
        def solve(block):
            if block.index:
                time.sleep(float(os.environ.get("SLOW_S", "0")))
            return {name: quantize(layer.weight.data, grid) for name, layer in block.linears.items()}
        return store_in_format(plan, model, solve_blocks(plan, model, calibration, work, solve, grid=grid, reference=True))
'''


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process in which the method Slow is installed."""
    site = tmp_path_factory.mktemp("slow")
    (site / "slow_rounding.py").write_text(textwrap.dedent(SLOW))
    (site / "slow-1.dist-info").mkdir()
    (site / "slow-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1\n")
    (site / "slow-1.dist-info" / "entry_points.txt").write_text("[quantkit]\nSlow = slow_rounding\n")
    return {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def flags(tiny_model: Path, rows: Path, tmp_path: Path) -> list[object]:
    """Flags that quantize the tiny model with RTN into `tmp_path / "artifacts"`, judged on few tokens."""
    return [
        "--src", tiny_model, "--method", "RTN", "--group-size", 32, "--dst", tmp_path / "artifacts",
        "--gate-data", f"openmath:{rows}", "--gate-tokens", 256,
    ]  # fmt: skip


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_a_dry_run_writes_nothing_and_what_is_there_is_neither_replaced_nor_quantized_again(
    flags: list[object], read_json: Any, quantkit: Any, tmp_path: Path
) -> None:
    planned = read_json("quantize", *flags, "--dry-run")
    assert planned["name"] == NAME
    assert planned["time_s"] is None
    assert not (tmp_path / "artifacts").exists()
    made = Path(read_json("quantize", *flags)["artifact"])
    size = (made / "model.safetensors").stat().st_size
    assert abs(planned["size_bytes"] - size) < 0.05 * size
    planned = read_json("quantize", *flags, "--overwrite", "--dry-run")
    assert planned["exists"] is True
    assert planned["time_s"] is not None  # by the rate of the artifact that is there now
    code, _, err = quantkit("quantize", "--src", made, *flags[2:])
    assert code == 2
    assert "holds int4 weights (compressed-tensors); only dense 16- or 32-bit models are quantized" in err
    code, _, err = quantkit("quantize", *flags)
    assert code == 2
    assert "exists; choose another output folder or pass --overwrite" in err


def test_the_artifact_is_judged_twice_verified_and_evaluated(
    flags: list[object], read_json: Any, quantkit: Any, tmp_path: Path
) -> None:
    made = Path(read_json("quantize", *flags, "--seed", 1)["artifact"])
    record = read_record(made)
    gate = record.verification["gate"]
    assert gate["outcome"] == "passed"
    assert gate["reloaded"]["perplexity_ratio"] == pytest.approx(gate["in_memory"]["perplexity_ratio"], rel=1e-3)
    assert gate["text"]["tokens"] >= 256
    assert record.quantization.weights_dtype == "int4"
    assert quantkit("registry", "verify", "--root", made.parent)[0] == 0
    found = read_json("evaluate", made, "--limit", 2, "--max-new-tokens", 4, "--registry", made.parent)
    assert found["artifacts"][0]["quantization"]["weights_dtype"] == "int4"
    assert not (made.parent / ".quantizing").exists()
    again = Path(read_json("quantize", *flags[:6], *flags[8:], "--dst", tmp_path / "again" / NAME)["artifact"])
    assert again == tmp_path / "again" / NAME  # an explicit folder
    assert weights(again) == weights(made)


def test_prompts_are_answered_by_the_model_loaded_again_or_in_memory_where_it_is_not(
    flags: list[object], read_json: Any, quantkit: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answering: list[str] = []
    ask = gate._broken

    def asked(model: Any, *rest: Any) -> Any:
        answering.append(type(model.model.layers[0].mlp.up_proj).__name__)
        return ask(model, *rest)

    monkeypatch.setattr(gate, "_broken", asked)
    flags[flags.index("--gate-tokens") + 1] = 4096
    found = read_record(Path(read_json("quantize", *flags)["artifact"])).verification["gate"]
    assert answering == ["Linear", "Linear"]  # the source, and what a plain load makes of the folder
    assert found["in_memory"]["broken"] is None
    assert found["reloaded"]["answers"] == found["text"]["prompts"]
    answering.clear()
    monkeypatch.setattr("quantkit_tools.quantizing.making.free_bytes", lambda _: 1)
    code, _, err = quantkit("quantize", *flags, "--overwrite")
    assert code == 0
    assert "loading again: not done: it needs" in err
    (made,) = Registry(tmp_path / "artifacts").artifacts()
    assert made.record is not None
    found = made.record.verification["gate"]
    assert found["reloaded"] is None
    assert found["in_memory"]["answers"] == found["text"]["prompts"]
    assert answering == ["Linear", "PackedLinear"]


def test_a_model_beyond_the_limits_is_saved_marked_and_exit_3(flags: list[object], quantkit: Any, tmp_path: Path) -> None:
    flags[flags.index("--gate-tokens") + 1] = 16  # of one document
    code, out, err = quantkit("quantize", *flags, "--bits", 2, "--max-kl", "0.0001", "--min-top1", "0.999", "--json")
    assert code == 3
    assert "is marked: mean KL is" in err
    assert "answers are not judged: with 1 of them, " in " ".join(err.split())
    assert json.loads(out)["gate"]["outcome"] == "failed"
    (entry,) = Registry(tmp_path / "artifacts").artifacts()
    assert entry.record is not None
    assert entry.record.verification["gate"]["reasons"]
    listed = quantkit("registry", "ls", "--root", tmp_path / "artifacts")[1]
    assert "failed its gate: mean KL is" in " ".join(listed.split())


def test_ignored_layers_stay_dense_and_the_head_may_be_float16(flags: list[object], read_json: Any, tiny_model: Path) -> None:
    import torch
    from safetensors.torch import load_file

    made = Path(read_json("quantize", *flags, "--ignore", "down_proj", "layers.0.*", "--keep-lm-head-fp16")["artifact"])
    assert made.name == NAME.replace("headbf16", "headfp16")
    stored, original = load_file(made / "model.safetensors"), load_file(tiny_model / "model.safetensors")
    for name in ("model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight"):
        assert torch.equal(stored[name], original[name])
    assert "model.layers.1.self_attn.q_proj.weight_packed" in stored
    assert stored["model.embed_tokens.weight"].dtype == torch.float16
    found = read_json("evaluate", made, "--limit", 2, "--max-new-tokens", 4, "--registry", made.parent)
    assert found["artifacts"][0]["quantization"]["lm_head_dtype"] == "float16"


def test_a_trained_model_is_quantized_under_its_own_name_on_its_own_rows(
    settings: list[object], read_json: Any, quantkit: Any
) -> None:
    parent = Path(read_json("train", *settings)["artifact"])
    flags = ["--src", parent, "--dst", parent.parent, "--method", "GPTQ", "--group-size", 32, "--calib", "sft"]
    small = ["--calib-rows", 8, "--calib-length", 64, "--calib-min-tokens", 200, "--gate-tokens", 256]
    made = Path(read_json("quantize", *flags, *small, "--max-ppl-ratio", 9, "--max-kl", 9, "--min-top1", 0)["artifact"])
    assert made.name == "Tiny-Llama-openmath_SFT_LoRa4_GPTQ_w4_g32_headbf16"
    record = read_record(made)
    assert record.parents[0].name == parent.name
    assert record.data["calibration"]["source"].startswith("training rows of ")
    assert record.data["system_prompt"] == read_record(parent).data["system_prompt"]
    assert record.verification["quantized"]["weights"] > 500_000
    assert quantkit("registry", "verify", made.name, "--root", parent.parent)[0] == 0
    lineage = quantkit("registry", "lineage", made.name, "--root", parent.parent)[1]
    assert "quantized with GPTQ" in lineage
    assert parent.name in " ".join(lineage.split())


def test_a_killed_run_goes_on_after_its_last_finished_block(
    slow: dict[str, str], tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    def command(root: str) -> list[str]:
        flags = ["--src", tiny_model, "--method", "Slow", "--dst", tmp_path / root, "--calib", f"openmath:{rows}", "--json"]
        small = ["--calib-rows", 8, "--calib-length", 64, "--calib-min-tokens", 200, "--gate-tokens", 256]
        return [sys.executable, str(SCRIPT), "run", *map(str, [*flags, *small])]

    work = tmp_path / "killed" / ".quantizing" / "Tiny-Llama-base_Slow_w4_g32_headbf16"
    running = subprocess.Popen(command("killed"), env=slow | {"SLOW_S": "60"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (work / "block-0000").is_dir() and time.monotonic() < deadline:
        assert running.poll() is None, running.communicate()[1].decode()
        time.sleep(0.1)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert not list((tmp_path / "killed").glob("Tiny-*"))
    made = {}
    for root in ("killed", "whole"):
        done = subprocess.run(command(root), env=slow, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        made[root] = Path(json.loads(done.stdout)["artifact"])
    assert weights(made["killed"]) == weights(made["whole"])
    records = {root: read_record(folder).verification["quantized"] for root, folder in made.items()}
    assert (records["killed"]["resumed_blocks"], records["whole"]["resumed_blocks"]) == (1, 0)
    assert len(records["whole"]["block_errors"]) == 4
    assert records["killed"]["block_errors"] == records["whole"]["block_errors"]
    assert not (tmp_path / "killed" / ".quantizing").exists()


def test_the_script_lists_the_methods_for_finished_models() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "list", "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    methods = {entry["name"]: entry for entry in json.loads(done.stdout)["methods"]}
    assert methods["RTN"]["calibration"] == "none"
    assert "QLORA" not in methods or "NoQuant" not in methods
    assert len(SCRIPT.read_text().splitlines()) <= 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--method": "RNT"}, "Did you mean 'RTN'?"),
        ({"--method": "INT8"}, "INT8 quantizes while a base is loaded for training"),
        ({"--src": "nowhere/at/all"}, "no such file or folder"),
        ({"--group-size": 48}, "sizes that fit: 128, 64, 32, 16, -1; or --ignore model.layers.0"),
        ({"--calib": "sft"}, "RTN uses no calibration text; leave out --calib"),
        ({"--method": "GPTQ", "--gate-data": None}, "GPTQ quantizes with calibration text; name some with --calib FILE"),
        ({"--method": "GPTQ", "--calib": "sft"}, "has no record of what it was trained on; name a file"),
        ({"--method": "HQQ", "--acts-bits": 8}, "activations_bits 8 was asked for, but HQQ makes None and has no such option"),
        ({"--bits": 5}, "weights_bits is '5'"),
        ({"--damp-percent": "0.1"}, "damp_percent is no option of RTN but of "),
        ({"--grup-size": 4}, "Did you mean --group-size?"),
        ({"--gate-data": "missing.jsonl"}, "there is no such file"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_2(
    changes: dict[str, object], said: str, flags: list[object], quantkit: Any, tmp_path: Path
) -> None:
    pairs = dict(zip(flags[::2], flags[1::2], strict=True)) | changes
    code, _, err = quantkit("quantize", *[item for pair in pairs.items() if pair[1] is not None for item in pair])
    assert code == 2, err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert not (tmp_path / "artifacts").exists()


def test_help_says_what_each_flag_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_verb("quantize", ["--help", "--method", "HQQ"])
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert ended.value.code == 0
    assert "Rows of calibration text." in printed
    assert "Steps from the best range found." in printed
