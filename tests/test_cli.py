"""Does the command answer fast, fail in one line, and keep its exit codes?"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantkit import __version__
from quantkit.errors import QuantkitError, UsageError, VerificationError
from quantkit.files import new_folder
from quantkit_tools import cli, methods

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "pandas", "accelerate")
LIGHT = """
import sys
from quantkit_tools.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code or 0
heavy = [name for name in {heavy!r} if name in sys.modules]
sys.exit(f"imports {{heavy}}" if heavy else code)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["methods"],
        ["methods", "--json"],
        ["methods", "--help"],
        ["methods", "BNB4BIT"],
        ["registry", "--help"],
        ["registry", "ls"],
        ["registry", "tree"],
        ["registry", "adopt", "--help"],
        ["merge", "--help"],
        ["train", "--help"],
        ["preflight", "--help"],
        ["evaluate", "--help"],
        ["sweep", "--help"],
    ],
    ids=" ".join,
)
def test_what_only_tells_imports_nothing_heavy(arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(heavy=HEAVY), *arguments],
        cwd=tmp_path,
        env=os.environ | {"QUANTKIT_REGISTRY": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_help_lists_every_verb_and_each_can_be_imported(capsys):
    from importlib import import_module

    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    for verb in cli.VERBS:
        assert f"  {verb} " in printed
        assert callable(import_module(f"quantkit_tools.{verb}").main)


def test_without_arguments_help_is_printed_and_the_code_is_2(capsys):
    assert cli.main([]) == 2
    assert "usage: quantkit VERB" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"quantkit {__version__}\n"


def test_an_unknown_verb_is_suggested_in_one_line(capsys):
    assert cli.main(["method"]) == 2
    assert capsys.readouterr().err == (
        f"error: no verb is called 'method'. Did you mean 'methods'? Known: {', '.join(cli.VERBS)}.\n"
    )


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (QuantkitError("the disk is full"), 1, "error: the disk is full\n"),
        (UsageError("no such column"), 2, "error: no such column\n"),
        (VerificationError("the weights differ"), 3, "error: the weights differ\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (BrokenPipeError(), 0, ""),
        (OSError(28, "No space left on device"), 1, "error: No space left on device\n"),
        (PermissionError(13, "Permission denied", "/data/rows"), 1, "error: /data/rows: Permission denied\n"),
    ],
)
def test_each_kind_of_failure_has_its_exit_code_and_no_traceback(monkeypatch, capsys, error, code, line):
    def fail(arguments):
        raise error

    monkeypatch.setattr(methods, "main", fail)
    assert cli.main(["methods"]) == code
    assert capsys.readouterr().err == line


def test_an_error_of_a_library_that_is_not_the_systems_keeps_its_traceback(monkeypatch):
    def fail(arguments):
        raise OSError("the library has a fault")

    monkeypatch.setattr(methods, "main", fail)
    with pytest.raises(OSError, match="has a fault"):
        cli.main(["methods"])


@pytest.mark.parametrize("verb", ["methods", "train --help"])
def test_a_reader_that_stops_reading_ends_the_command_without_a_word(verb, tmp_path):
    script = f"{sys.executable} -m quantkit_tools.cli {verb} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_output_that_knows_ascii_only_gets_question_marks_for_the_rest(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "quantkit_tools.cli", "methods"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"????" in done.stdout  # the line below the headings
    assert b"NoQuant" in done.stdout


def test_sigterm_ends_a_verb_as_ctrl_c_does_and_is_the_callers_again_afterwards(monkeypatch, capsys, tmp_path):
    def work(arguments):
        with new_folder(tmp_path / "made"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(methods, "main", work)
    assert cli.main(["methods"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is before
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_flag_is_usage_in_one_line(capsys):
    assert cli.main(["methods", "--jsn"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--json" in error


def test_methods_lists_stage_source_and_use(capsys):
    assert cli.main(["methods"]) == 0
    printed = capsys.readouterr().out
    for name in ("NoQuant", "INT8", "BNB4BIT", "QLORA"):
        assert re.search(rf"^{name} +base(, trained)? +yes .*quantkit {re.escape(__version__)}", printed, flags=re.MULTILINE)


def test_methods_as_json_is_one_object_with_everything(capsys):
    assert cli.main(["methods", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["broken"] == {}
    entry = next(entry for entry in data["methods"] if entry["name"] == "BNB4BIT")
    assert (entry["stages"], entry["usable"], entry["why_not"]) == (["base", "trained"], True, None)
    assert entry["distribution"] == f"quantkit {__version__}"
    assert entry["options"][0] == {
        "name": "quant_type",
        "type": "nf4 | fp4",
        "default": "nf4",
        "required": False,
        "help": "Grid of the weights: nf4 (quantiles of a normal distribution) or fp4 (4-bit floats).",
    }


def test_one_method_is_shown_with_its_options(capsys):
    assert cli.main(["methods", "int8"]) == 0
    printed = capsys.readouterr().out
    assert "llm_int8_threshold  6" in printed
    assert "usable here   yes" in printed


def test_an_unknown_method_is_suggested(capsys):
    assert cli.main(["methods", "QLORAA"]) == 2
    assert "Did you mean 'QLORA'?" in capsys.readouterr().err


def test_a_method_that_lacks_something_says_what(monkeypatch, capsys):
    from quantkit.methods import Methods

    def missing(methods, name):
        return ("bitsandbytes>=0.50 (not installed)",) if name == "QLORA" else ()

    monkeypatch.setattr(Methods, "missing", missing)
    assert cli.main(["methods"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^QLORA +base +no ", printed, flags=re.MULTILINE)
    assert "QLORA needs bitsandbytes>=0.50 (not installed); install it with pip" in printed


def test_a_broken_plugin_is_listed_with_its_reason(monkeypatch, capsys):
    from quantkit.methods import Methods, Source

    broken = Methods()
    broken.register(object(), Source("Nothing", "nothing 1"))
    broken.broken["TOY"] = "plugin 'TOY' of toy 1 does not import: ImportError: no"
    monkeypatch.setattr(methods, "installed_methods", lambda: broken)
    assert cli.main(["methods"]) == 0
    assert "plugin 'TOY' of toy 1 does not import: ImportError: no" in capsys.readouterr().out


def test_a_gpu_is_seen_by_its_driver_and_hidden_by_the_environment(monkeypatch, tmp_path):
    driver = tmp_path / "version"
    driver.write_text("")
    monkeypatch.setattr(methods, "NVIDIA_FILES", (driver,))
    monkeypatch.setattr(methods, "_torch_version", lambda: "2.13.0")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert methods.device_types() == ("cuda", "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert methods.device_types() == ("cpu",)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(methods, "_torch_version", lambda: "2.13.0+cpu")
    assert methods.device_types() == ("cpu",)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert methods.device_types() == ("mps", "cpu")


def test_a_method_for_gpus_is_not_usable_without_one(monkeypatch):
    from dataclasses import replace

    from quantkit.methods import installed_methods

    known = installed_methods()
    monkeypatch.setitem(known._infos, "QLORA", replace(known.info("QLORA"), devices=("cuda",)))
    entry = methods.describe_method(known, "QLORA", ("cpu",))
    assert entry["why_not"] == "QLORA runs on cuda; this machine offers 'cpu'"
    assert methods.describe_method(known, "QLORA", ("cuda", "cpu"))["usable"]


def test_one_method_is_shown_with_its_paper_what_it_takes_and_its_limits(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["methods", "gptq"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for told in (
        "paper arXiv:2210.17323",
        "takes Calibration text; memory for the model",
        "Marlin kernels",
        "limits At 4 bits",
    ):
        assert told in out


def test_the_console_script_is_installed():
    script = Path(sys.executable).with_name("quantkit")
    if not script.exists():
        pytest.skip("quantkit is not installed beside this Python")
    assert subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout.startswith("quantkit ")


def test_a_command_after_one_with_json_prints_on_stdout_again(capsys):
    from quantkit_tools.cli import main

    assert main(["methods", "--json"]) == 0
    capsys.readouterr()
    assert main(["methods"]) == 0
    assert "Quantization methods" in capsys.readouterr().out
