"""The flags of `quantkit train`: every setting, every name of it, files overridden, help without torch."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from quantkit.config import RunConfig
from quantkit.errors import UsageError
from quantkit.methods import Source
from quantkit.plan import MethodInfo
from quantkit_tools.flags import TrainFlags, parse_train_flags
from tests.settings_methods import settings_methods
from tests.test_runfiles import FINANCE_STUDY

METHODS = settings_methods()


def parsed(line: str) -> TrainFlags:
    return parse_train_flags(line.split(), methods=METHODS)


def config_of(line: str) -> RunConfig:
    return parsed(line).config


@pytest.fixture
def finance_file(tmp_path: Path) -> Path:
    path = tmp_path / "finetune_configs.json"
    path.write_text(FINANCE_STUDY)
    return path


def test_flags_are_settings() -> None:
    flags = parsed(
        "--quant-method QLORA --peft-config LoRa --model-name-or-path org/M --lora-r 8 --target-modules q_proj v_proj"
    )
    assert flags == TrainFlags(
        RunConfig(model_name_or_path="org/M", quant_method="QLORA", lora_r=8, target_modules=("q_proj", "v_proj"))
    )


def test_hyphens_underscores_and_equals_signs_are_the_same() -> None:
    assert config_of("--model m --lora_r 8") == config_of("--model=m --lora-r=8") == config_of("--MODEL m --Lora-R 8")


def test_other_tools_names_are_flags() -> None:
    config = config_of("--base-model m --dataset-path d.jsonl --num-epochs 2 --batch-size 4 --quant-bits 4 --use-dora")
    assert (config.quant_method, config.peft_config, config.num_train_epochs) == ("BNB4BIT", "DoRa", 2.0)
    assert config.method_options == {"quant_type": "nf4", "double_quant": True}


def test_a_switch_is_set_alone_with_a_word_or_with_no() -> None:
    assert config_of("--model m --gradient-checkpointing").gradient_checkpointing
    assert config_of("--model m --gradient_checkpointing True").gradient_checkpointing
    assert not config_of("--model m --no-merge-after-train").merge_after_train
    assert parsed("--model m --dry-run --json").dry_run
    assert not parsed("--model m --dry-run false --no-json").dry_run
    assert config_of("--model m --resume-from-checkpoint").resume_from_checkpoint is True
    assert config_of("--model m --resume-from-checkpoint runs/3").resume_from_checkpoint == "runs/3"


def test_none_and_negative_numbers_are_values() -> None:
    config = config_of("--model m --lora-r None --dataset-name None --max-steps -1")
    assert (config.lora_r, config.dataset_name, config.max_steps) == (None, None, -1)


def test_the_options_of_the_chosen_method_are_flags() -> None:
    assert config_of("--model m --quant-method BNB4BIT --quant-type fp4 --no-double-quant").method_options == {
        "quant_type": "fp4",
        "double_quant": False,
    }


def test_a_run_of_a_file_is_chosen_and_flags_override_it(finance_file: Path) -> None:
    flags = parsed(f"--config {finance_file} --run xbrl_4bits_r4 --learning-rate 1e-3 --batch-size 2 --dry-run")
    assert (flags.run_name, flags.dry_run) == ("xbrl_4bits_r4", True)
    assert (flags.config.learning_rate, flags.config.per_device_train_batch_size) == (1e-3, 2)
    assert (flags.config.quant_method, flags.config.lora_r) == ("QLORA", 4)


def test_a_flag_that_chooses_method_or_adapter_overrides_what_implied_it(finance_file: Path) -> None:
    assert config_of(f"--config {finance_file} --run xbrl_4bits_r4 --quant-method INT8").quant_method == "INT8"
    dora = config_of(f"--config {finance_file} --run xbrl_4bits_r4 --peft-config DoRa")
    assert (dora.quant_method, dora.peft_config) == ("BNB4BIT", "DoRa")


def test_a_flag_may_name_the_model_that_the_file_leaves_open(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("lora_r = 4\n")
    assert config_of(f"--config {path} --model m").model_name_or_path == "m"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--model m --lora_rr 3", "no flag is called --lora_rr. Did you mean --lora-r? quantkit train --help lists them"),
        ("--model m --no-lora-r", "no flag is called --no-lora-r."),
        ("--model m --zzz", "no flag is called --zzz. quantkit train --help lists them"),
        ("m", "'m' follows no flag; settings are written --name value"),
        ("--model m --lora-r 3 --lora_r 4", "--lora_r stands twice; keep one"),
        ("--model m --lora-r 3 --lora-rank 4", "command line: lora_r='3' and lora_rank='4' both set lora_r; keep one"),
        ("--model m --lora-r", "--lora-r wants a value"),
        ("--model m --no-overwrite 3", "--no-overwrite takes no value; found '3'"),
        ("--model m --lora-r x", "command line: lora_r is 'x': Input should be a valid integer"),
        ("--model m --lora-r 3 4", "command line: lora_r is ['3', '4']: one value is wanted"),
        ("--model m --lora-r 0", "command line: lora_r is 0; it must be between 1 and 65536, or None"),
        ("--lora-r 8", "command line: no model is named; set model_name_or_path"),
        ("--model m --quant-type fp4", "command line: quant_type='fp4' is no option of NoQuant but of BNB4BIT"),
        ("--model m --run fast", "--run chooses a run of a file; name the file with --config FILE"),
        ("--model m --dry-run perhaps", "command line: dry_run is 'perhaps': Input should be a valid boolean"),
        ("--model m --config a.json b.json", "--config wants one value"),
        ("--model m --method-options x", "no flag is called --method-options."),
    ],
)
def test_a_command_line_that_cannot_be_followed_is_one_line(line: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parsed(line)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_errors_of_the_file_and_of_the_flags_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"model": "m", "lora_rr": 8}')
    with pytest.raises(UsageError, match=r"run\.json: 'lora_rr' is no setting"):
        parsed(f"--config {path} --quant-method INT8")
    path.write_text('{"model": "m"}')
    with pytest.raises(UsageError, match=r"run\.json, with the flags given: lora_r is 0"):
        parsed(f"--config {path} --lora-r 0")


def test_the_help_lists_every_setting_and_the_methods_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed("--quant-method BNB4BIT --help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for item in fields(RunConfig):
        if item.name != "method_options":
            assert f"--{item.name.replace('_', '-')}" in text
    assert "BNB4BIT options" in text
    assert "Grid of the codes" in text
    assert "--config" in text
    assert "--use-dora" in text


def test_the_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom quantkit_tools.flags import parse_train_flags\ntry: parse_train_flags(['--help'])\n"
        "except SystemExit: print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"


def test_a_plugins_own_options_are_flags() -> None:
    from dataclasses import dataclass

    from quantkit.hookspecs import hookimpl

    @dataclass(frozen=True)
    class Options:
        """Options of a stranger."""

        group_size: int = 128
        """Columns per scale."""

    class Plugin:
        @hookimpl
        def declare_method(self) -> MethodInfo:
            return MethodInfo("RTN", "rounding", Options)

    methods = settings_methods()
    methods.register(Plugin(), Source("RTN", "stranger 1.0"))
    flags = parse_train_flags(["--model", "m", "--quant-method", "RTN", "--group_size", "64"], methods=methods)
    assert flags.config.method_options == {"group_size": 64}
