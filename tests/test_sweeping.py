"""A sweep file is the product of its lists, without what it excludes; every mistake in it is one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import UsageError
from quantkit.sweeping import Combination, Sweep, read_sweep
from tests.settings_methods import settings_methods

METHODS = settings_methods()
BASE = {"base_model": "org/M", "dataset": "d.jsonl"}


def sweep_of(tmp_path: Path, **sections: Any) -> Sweep:
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"base": BASE} | sections))
    return read_sweep(path)


def runs_of(tmp_path: Path, **sections: Any) -> list[Combination]:
    return sweep_of(tmp_path, **sections).combinations(METHODS)[0]


def test_the_lists_are_loops_the_first_outermost(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, vary={"quant_method": ["NoQuant", "BNB4BIT"], "peft_config": ["LoRa", "DoRa"], "seed": [1]})
    assert [run.label for run in runs] == [
        "NoQuant, LoRa, seed 1",
        "NoQuant, DoRa, seed 1",
        "BNB4BIT, LoRa, seed 1",
        "BNB4BIT, DoRa, seed 1",
    ]
    assert {run.config.name_settings for run in runs} == {("seed",)}
    assert runs[2].config.quant_method == "BNB4BIT"


def test_an_entry_may_set_several_settings_and_options_under_any_name(tmp_path: Path) -> None:
    methods = [{"quant_method": "BNB4BIT", "bnb_4bit_quant_type": "fp4"}, "QLORA"]
    runs = runs_of(tmp_path, vary={"QUANT_METHOD": methods, "lora_rank": [4, 8]})
    assert [run.label for run in runs][:2] == [
        "BNB4BIT (bnb_4bit_quant_type fp4), lora_r 4",
        "BNB4BIT (bnb_4bit_quant_type fp4), lora_r 8",
    ]
    assert runs[0].config.method_options == {"quant_type": "fp4"}
    assert runs[2].config.method_options == {}


def test_merge_policies_are_no_loop_but_what_becomes_of_each_adapter(tmp_path: Path) -> None:
    assert runs_of(tmp_path)[0].policies == ("dequantized",)
    assert runs_of(tmp_path, base=BASE | {"merge_after_train": False})[0].policies == ("kept",)
    assert runs_of(tmp_path, vary={"merge_policy": ["kept", "requantized"]})[0].policies == ("kept", "requantized")


def test_exclusions_leave_out_what_agrees_in_all_their_settings(tmp_path: Path) -> None:
    vary = {"quant_method": ["NoQuant", "QLORA"], "merge": ["kept", "base"], "target_modules": [["attention"], ["all-linear"]]}
    rules = [{"quant_method": "noquant", "merge": "base"}, {"quant_method": "QLORA", "target_modules": "attention"}]
    found, left_out = sweep_of(tmp_path, vary=vary, exclude=rules).combinations(METHODS)
    assert [(run.label, run.policies) for run in found] == [
        ("NoQuant, target_modules attention", ("kept",)),
        ("NoQuant, target_modules all-linear", ("kept",)),
        ("QLORA, target_modules all-linear", ("kept", "base")),
    ]
    assert left_out == 4


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"varry": {}}, "'varry' is no section. Did you mean 'vary'?"),
        ({"base": []}, "base must be an object of settings"),
        ({"exclude": {}}, "exclude must be a list of settings"),
        ({"evaluate": []}, "evaluate must be an object of flags"),
        ({"vary": {"lora_rr": [1]}}, "vary.lora_rr: no such setting. Did you mean 'lora_r'?"),
        ({"vary": {"seed": 1}}, "vary.seed: 1 is no list of values"),
        ({"vary": {"seed": []}}, "vary.seed: [] is no list of values"),
        ({"vary": {"merge": ["dequantised"]}}, "'dequantised' is none of kept, dequantized, base, requantized. Did you mean"),
        ({"vary": {"output_dir": ["a"]}}, "vary.output_dir: cannot be varied; it is the same for all runs"),
        (
            {"vary": {"merge_after_train": [True, False]}},
            "vary.merge_after_train: cannot be varied; vary merge: [kept, …] instead, where kept is an adapter that is not",
        ),
        ({"vary": {"quant_bits": [4, 8]}}, "vary.quant_bits: cannot be varied; vary quant_method instead"),
        ({"vary": {"quant_method": [{"group_size": 64}]}}, "does not set quant_method"),
        ({"vary": {"seed": [-1]}}, "s.json: seed -1: seed is -1; it must be between 0"),
        ({"exclude": [{"seed": 9}]}, "exclude: {'seed': 9} fits no combination"),
        ({"exclude": ["x"]}, "exclude: 'x' is no object of settings"),
        ({"evaluate": {"base": 1}}, "evaluate.base is 1; it must be true or false"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(sections: dict[str, Any], said: str, tmp_path: Path) -> None:
    def read() -> bool:
        sweep = sweep_of(tmp_path, **sections)
        return bool(sweep.combinations(METHODS)) and sweep.wants_base

    with pytest.raises(UsageError) as caught:
        read()
    assert said in str(caught.value)
    assert "s.json" in str(caught.value)


def test_a_file_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text("[]")
    with pytest.raises(UsageError, match="an object with the sections base and vary is wanted"):
        read_sweep(tmp_path / "s.json")
