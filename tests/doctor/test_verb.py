"""`quantkit doctor` says in one block what is here, and exits 3 when something will break."""

import json
import subprocess
import sys

import pytest

from quantkit.doctor.trials import TRIALS, Trial, judge_trials, run_trials
from quantkit_tools import cli, doctor

HEAVY = ("torch", "transformers", "peft", "bitsandbytes")


def test_it_imports_nothing_heavy(tmp_path):
    code = f"""
import sys
from quantkit_tools.cli import main
code = main(["doctor"])
heavy = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"imports {{heavy}}" if heavy else code)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing was found that will break" in done.stdout


def test_the_block_is_fenced_and_hides_the_home_folder(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("QUANTKIT_REGISTRY", str(tmp_path / "models"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    fenced = printed.split("```")[1]
    assert fenced.startswith("text\nversions")
    for word in ("processor", "memory", "GPU", "methods", "registry", "hub cache", "HF_TOKEN=set", "quantkit 0."):
        assert word in fenced
    assert "~/models (not there yet), writable" in fenced
    assert str(tmp_path) not in printed
    assert "hf_secret" not in printed


def test_as_json_it_is_one_object(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data) == {
        "machine", "versions", "settings", "places", "methods", "broken_plugins", "trials", "findings", "breaks",
    }  # fmt: skip
    assert data["trials"] is None
    assert data["breaks"] == 0
    assert {entry["name"] for entry in data["methods"]} >= {"NoQuant", "QLORA"}
    assert data["machine"]["memory_bytes"] >= data["machine"]["available_bytes"] > 0


def test_a_pair_that_breaks_is_exit_code_3_with_its_source(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "versions_of", lambda _: {"torchao": "0.18.0", "peft": "0.18.1"})
    assert cli.main(["doctor"]) == 3
    printed = capsys.readouterr()
    assert "Will break\n- torchao 0.18.0, peft 0.18.1: plain LoRA fails" in printed.out
    assert "  what to do: pip install 'peft>=0.21,<0.22'" in printed.out
    assert "  source: https://github.com/unslothai/unsloth/pull/11168" in printed.out
    assert "warning: 1 of these will break something; --deep also tries" in printed.err


def test_a_broken_plugin_is_named_and_the_rest_goes_on(capsys, monkeypatch):
    from quantkit.methods import installed_methods

    monkeypatch.setitem(installed_methods().broken, "TOY", "plugin 'TOY' of toy 1 does not import: ImportError: no")
    monkeypatch.setitem(installed_methods().notes, "LOUD", "plugin 'LOUD' of loud 1 prints 9 bytes when it is imported")
    assert cli.main(["doctor"]) == 3
    printed = capsys.readouterr().out
    assert "- plugin TOY: plugin 'TOY' of toy 1 does not import: ImportError: no" in printed
    assert "QUANTKIT_DISABLE_PLUGINS=TOY" in printed
    assert "- plugin LOUD: plugin 'LOUD' of loud 1 prints 9 bytes" in printed


def test_methods_that_lack_a_library_come_with_what_to_type(capsys, monkeypatch):
    from quantkit.methods import Methods

    def lacking(methods, name):
        return ("torchao>=0.18 (not installed)",) if name == "TorchAO" else ()

    monkeypatch.setattr(Methods, "missing", lacking)
    assert cli.main(["doctor"]) == 0
    assert 'pip install "torchao>=0.18"' in capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 160])
def test_nothing_runs_out_of_a_terminals_width_in_tables(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert cli.main(["doctor"]) == 0
    after = capsys.readouterr().out.split("```")[2]
    table = after.split("Beware")[0]
    assert all(len(line) <= width for line in table.splitlines())


def test_trials_that_fail_do_not_keep_the_others_from_running():
    ended = run_trials(names=("no such trial", "LoRA"))
    assert [(trial.name, trial.outcome) for trial in ended] == [("no such trial", "breaks"), ("LoRA", "ok")]
    assert ended[0].detail == "KeyError: 'no such trial'"
    died = (
        run_trials(names=("\0",)) if sys.platform == "never" else [Trial("GPU", "breaks", "the process died with code -4: x")]
    )
    (finding,) = judge_trials([*died, Trial("LoRA", "ok", "")])
    assert (finding.severity, finding.subject) == ("breaks", "tried: GPU")


def test_what_is_tried_has_an_advice_each():
    from quantkit.doctor.trials import ADVICE

    assert set(ADVICE) == set(TRIALS)


def test_a_trial_that_takes_too_long_ends_the_trials():
    ended = run_trials(names=("LoRA", "GPU"), time_limit_s=0.2)
    assert [trial.outcome for trial in ended] == ["breaks", "beware"]
    assert ended[0].detail == "took longer than 0.2 s"
    assert ended[1].detail == "not tried: another trial took too long"


def test_deep_shows_what_was_tried(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "run_trials", lambda: [Trial("LoRA", "breaks", "ImportError: no")])
    assert cli.main(["doctor", "--deep"]) == 3
    printed = capsys.readouterr().out
    assert "tried            LoRA: breaks: ImportError: no" in printed
    assert "- tried: LoRA: ImportError: no" in printed
