"""Does `quantkit plan` answer fast, truly and readably, from a configuration alone?"""

import json
import os
import subprocess
import sys

import pytest

from quantkit import console
from quantkit.errors import UsageError
from quantkit.forecasting.bundled import DESCRIBED
from quantkit.forecasting.constants import GIB
from quantkit.forecasting.sizes import least_text
from quantkit.methods import installed_methods
from quantkit_tools import cli
from quantkit_tools.plan import main
from tests.tools.plans import answered

SEVENTY = DESCRIBED["meta-llama/Llama-2-70b-hf"]
COUNTED = """
import json, re, sys
from pathlib import Path
from quantkit_tools.cli import main
code = main(sys.argv[1:])
heavy = [name for name in ("torch", "transformers", "peft", "bitsandbytes") if name in sys.modules]
peak_kb = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())  # getrusage counts the parent's before exec
print(json.dumps({"heavy": heavy, "code": code, "peak_mb": int(peak_kb[1]) / 1024}), file=sys.stderr)
"""


@pytest.fixture(autouse=True)
def nothing_learnt(monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTKIT_REGISTRY", str(tmp_path / "registry"))
    yield
    console.use_stdout()


@pytest.fixture
def seventy(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(SEVENTY))
    return str(file)


def counted(tmp_path, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, *arguments],
        cwd=tmp_path,
        env=os.environ | {"QUANTKIT_REGISTRY": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1]), done.stdout


@pytest.mark.parametrize("flags", [["--quant-method", "QLORA"], []], ids=["one run", "all methods"])
def test_a_70b_configuration_is_answered_in_500_mb_without_torch(flags, seventy, tmp_path):
    used, printed = counted(tmp_path, "plan", seventy, "--device", "cuda", *flags)
    assert used["heavy"] == []
    assert used["code"] == 0
    assert used["peak_mb"] < 500, used
    assert "68.98 B" in printed


def test_help_names_the_flags_and_imports_nothing_heavy(tmp_path):
    heavy = "import sys\nfrom quantkit_tools.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
    check = "sys.exit(int('torch' in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", heavy + check, "plan", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert all(f"--{flag}" in done.stdout for flag in ("fit", "prefer", "table", "processes", "calibrate", "measure"))
    assert "plan" in cli.VERBS


def test_one_run_names_moments_items_peak_interval_disk_and_time(capsys):
    data = answered(
        capsys, "qwen3-8b", "--quant-method", "QLORA", "--device", "cuda", "--max-length", "256", "--tokens-per-s", "100",
        "--max-steps", "10",
    )  # fmt: skip
    assert [moment["name"] for moment in data["moments"]] == [
        "load",
        "start",
        "trial",
        "loss",
        "backward",
        "step",
        "observe",
        "merge",
        "compare",
    ]
    largest = max(data["moments"], key=lambda moment: moment["size_bytes"])
    assert (data["peak_moment"], data["peak_bytes"]) == (largest["name"], largest["total_bytes"])
    assert data["interval"]["low_bytes"] < data["peak_bytes"] < data["interval"]["high_bytes"]
    assert data["settings"]["optim"] == "paged_adamw_32bit"
    assert data["disk_bytes"] > 16 * GIB
    assert data["time"]["run_s"] == pytest.approx(8 * 256 * 10 / 100)


def test_all_methods_and_adapters_have_a_number_or_a_reason(capsys):
    data = answered(capsys, "qwen3-8b", "--device", "cuda")
    cells = {(cell["method"], cell["adapter"]): cell for cell in data["cells"]}
    assert len(cells) == 4 * len(
        [name for name in installed_methods().names if "base" in installed_methods().info(name).stages]
    )
    assert all((cell["forecast"] is None) == bool(cell["reason"]) for cell in cells.values())
    assert "carry no gradients" in cells["BNB4BIT", "NoPeft"]["reason"]
    forced = cells["QLORA", "DoRa"]
    assert forced["note"] == "QLORA trains LoRa adapters, not DoRa; for DoRa on a 4-bit base use BNB4BIT."
    assert forced["forecast"] == cells["QLORA", "LoRa"]["forecast"] | {"settings": forced["forecast"]["settings"]}
    assert forced["forecast"]["settings"]["plan"]["adapter"]["kind"] == "LoRa"
    peaks = {key: cell["forecast"]["moments"][3]["size_bytes"] for key, cell in cells.items() if cell["forecast"]}
    assert peaks["QLORA", "LoRa"] < peaks["INT8", "LoRa"] < peaks["NoQuant", "LoRa"] < peaks["NoQuant", "NoPeft"]


@pytest.mark.parametrize("flags", [[], ["--fit", "12GiB"]], ids=["one run", "fit"])
def test_of_an_adapter_that_the_method_does_not_train_it_is_said_which_runs(flags, capsys):
    named = ["qwen3-8b", "--device", "cuda", "--quant-method", "QLORA", "--peft-config", "DoRa"]
    assert main([*named, *flags]) == 0
    printed = capsys.readouterr()
    assert "QLORA trains LoRa adapters, not DoRa" in printed.err
    assert "LoRa" in printed.out
    assert "DoRa" not in printed.out


def test_a_table_says_as_what_an_adapter_runs_that_the_method_does_not_train(capsys):
    assert main(["qwen3-8b", "--device", "cuda"]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.split()[:1] == ["QLORA"])
    assert row.count("as LoRa") == 2
    assert printed.count("QLORA trains LoRa adapters, not DoRa") == 1


def test_a_group_size_that_does_not_divide_a_layer_is_a_reason_not_a_number(capsys, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(DESCRIBED["meta-llama/Llama-3.2-3B"] | {"hidden_size": 3040}))
    with pytest.raises(UsageError, match="group_size 128 does not divide the 3040 input columns of model"):
        main([str(file), "--quant-method", "GPTQ", "--group-size", "128"])


def test_a_model_known_by_name_only_and_one_that_is_quantized_already_are_said_to_be(capsys, tmp_path):
    assert "no file of the model is here" in answered(capsys, "qwen3-8b", "--device", "cuda")["remarks"][0]
    file = tmp_path / "config.json"
    file.write_text(json.dumps(SEVENTY | {"quantization_config": {"quant_method": "gptq"}}))
    assert "stored in gptq already" in answered(capsys, str(file), "--quant-method", "QLORA")["remarks"][0]


def test_what_fits_is_the_best_with_its_command_and_what_it_gives_up(capsys):
    data = answered(capsys, "llama-3.2-3b", "--fit", "8GiB", "--device", "cuda")
    best = data["fits"][0]
    assert best["forecast"]["peak_bytes"] <= data["room_bytes"] == 8 * GIB
    assert best["given_up"]
    assert best["command"].startswith("quantkit train --model llama-3.2-3b --quant-method ")
    assert "before" in data["order"]
    only = answered(capsys, "llama-3.2-3b", "--fit", "12GiB", "--device", "cuda", "--quant-method", "NoQuant")
    assert [fit["forecast"]["settings"]["plan"]["method"] for fit in only["fits"]] == ["NoQuant"]


def test_the_whole_interval_of_what_is_proposed_fits_or_it_is_said_that_it_does_not(capsys):
    roomy = answered(capsys, "qwen3-8b", "--fit", "12GiB", "--device", "cuda")["fits"][0]
    assert roomy["forecast"]["interval"]["high_bytes"] <= 12 * GIB
    assert roomy["forecast"]["settings"]["plan"]["method"] == "QLORA"
    assert main(["qwen3-8b", "--fit", "8GiB", "--device", "cuda"]) == 0
    printed = capsys.readouterr()
    assert "the upper end of that is above 8.00 GiB: memory may not suffice" in printed.err


@pytest.mark.parametrize(
    ("flags", "starts", "holds"),
    [
        ([], "torchrun --standalone --nproc-per-node 2 --no-python quantkit train ", ""),
        (["--sharding", "fsdp2"], "torchrun --standalone --nproc-per-node 2 --no-python quantkit train ", " --sharding fsdp2"),
        (["--device-map", "auto"], "quantkit train ", " --device-map auto"),
    ],
)
def test_the_command_for_several_gpus_starts_as_many_processes_as_share_the_run(flags, starts, holds, capsys):
    named = ["qwen3-8b", "--fit", "40GiB", "--device", "cuda", "--quant-method", "NoQuant", "--processes", "2"]
    found = answered(capsys, *named, *flags)["fits"][0]["command"]
    assert found.startswith(starts)
    assert holds in found


def test_where_nothing_fits_the_exit_code_is_3_and_nothing_is_made_up(capsys):
    assert main(["llama-2-70b-hf", "--fit", "4GiB", "--device", "cuda"]) == 3
    printed = capsys.readouterr().out
    assert "nothing fits into 4.00 GiB" in printed
    assert " --lora-r 4 " in printed.split("the least that was tried takes ")[1]
    flags = ["llama-3.2-3b", "--quant-method", "QLORA", "--device", "cuda", "--fit"]
    data = answered(capsys, *flags, "2GiB", code=3)
    assert data["fits"] == []
    least = data["least"]["forecast"]
    assert 2 * GIB < least["peak_bytes"] < data["asked"]["peak_bytes"]
    assert least["settings"]["length"] == 128
    console.use_stdout()
    assert main([*flags, "2GiB"]) == 3
    printed = capsys.readouterr().out.split("the least that was tried takes ")[1].split(":")[0]
    assert printed == least_text(least["peak_bytes"])
    for enough in (printed, f"{least['peak_bytes'] / GIB:.12f}GiB"):
        roomy = answered(capsys, *flags, enough)
        assert roomy["fits"]
        assert roomy["least"] is None


def test_a_plan_for_a_cpu_says_that_training_chooses_its_arithmetic_as_the_dry_run_does(capsys):
    flags = ["llama-3.2-3b", "--quant-method", "NoQuant", "--device"]
    assert main([*flags, "cpu"]) == 0
    assert "computing in the faster of bfloat16 and float32 (counted: bfloat16) on cpu" in capsys.readouterr().out
    for chosen in (["cpu", "--compute-dtype", "float32"], ["cuda"]):
        assert main([*flags, *chosen]) == 0
        assert "the faster of" not in capsys.readouterr().out


def test_each_of_several_gpus_is_named(capsys):
    data = answered(
        capsys, "qwen3-8b", "--quant-method", "QLORA", "--device", "cuda", "--processes", "2", "--sharding", "fsdp2"
    )
    assert data["settings"]["strategy"] == "fsdp"
    assert [device["device"] for device in data["devices"]] == [0, 1]


def test_the_classical_table_stands_beside_what_others_publish(capsys):
    data = answered(capsys, "--table")
    sizes = {row["way"]: row["ours_gib"] for row in data["sizes"]}
    assert sizes["full"]["7B"] == pytest.approx(16 * 6_738_415_616 / GIB, rel=0.02)
    assert sizes["QLoRA"]["70B"] < 48 < sizes["LoRA"]["70B"]
    assert all(row["published"] and row["source"] for row in data["sizes"])
    assert sum(not figure["met"] for figure in data["published"]) == 1
    assert len(data["differences"]) == 4
    console.use_stdout()
    assert main(["--table"]) == 0
    printed = capsys.readouterr().out
    assert "lost" in printed
    assert "LLaMA-Factory" in printed


@pytest.mark.parametrize("width", [60, 160])
@pytest.mark.parametrize("flags", [[], ["--quant-method", "QLORA"], ["--fit", "24GiB"]], ids=["all", "one", "fit"])
def test_tables_fit_into_narrow_and_wide_windows(width, flags, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["qwen3-8b", "--device", "cuda", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    tables = [line for line in lines if "  " in line.strip() or set(line) == {"─"}]
    assert tables
    assert all(len(line) <= width for line in tables)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], r"plan wants a model: quantkit plan MODEL"),
        (["./nowhere"], r"no such folder"),
        (["qwen3-8b", "--fit", "much"], r"an amount of memory is wanted"),
        (["qwen3-8b", "--processes", "0", "--quant-method", "QLORA"], r"--processes is 0; it must be positive"),
        (["qwen3-8b", "--tokens-per-s", "-3"], r"--tokens-per-s is -3.0; it must be positive"),
        (["qwen3-8b", "--quant-method", "SmoothQuantum"], r"no method is called 'SmoothQuantum'"),
        (["qwen3-8b", "--quant-method", "QLORA", "--peft-config", "NoPeft"], r"quantized weights carry no gradients"),
        (["qwen3-8b", "--group-size", "many"], r"options of AWQ: group_size is 'many'"),
        (["qwen3-8b", "--group-sizes", "64"], r"no flag is called --group-sizes. Did you mean --group-size?"),
        (["qwen3-8b", "--fits", "8GiB"], r"no flag is called --fits"),
        (["--calibrate"], r"no artifact has a forecast beside its measurement"),
    ],
)
def test_mistakes_are_one_line(arguments, text):
    with pytest.raises(UsageError, match=text):
        main(arguments)
