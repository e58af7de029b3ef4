"""Does the evaluation benchmark ask both tools the same, and call a lost comparison lost?"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from evaluate_cases import Ours, Rows, Way, generated, read_rows

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "evaluate.py"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    """The script under a name of its own: `evaluate` is also a library of others."""
    spec = importlib.util.spec_from_file_location("benchmark_evaluate", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_evaluate"] = module
    spec.loader.exec_module(module)
    return module


def found(
    *, faster: float = 2.0, same: int = 8, differ: tuple[int, ...] = (), theirs: float = 5.0, dtype: str = "float32"
) -> dict[str, Any]:
    job = {
        "ways": {},
        "best_of_lm_eval": "lm-eval, 8",
        "times_faster": {name: {"median": faster * times} for name, times in (("quantkit, one by one", 2), ("lm-eval, 8", 1))},
    }
    one = {"quantkit": 0.5, "lm-eval": 0.5, "rows_that_differ": list(differ)}
    return {
        "setting": {"dtype": dtype},
        "generation": job | {"answers": {"quantkit, one by one": 8, "lm-eval, 8": same, "of": 8}},
        "likelihood": job | {"accuracy": {"acc": one, "acc_norm": one}},
        "perplexity": {"quantkit": 5.0, "lm-eval": theirs},
    }


def lost(benchmark: Any, result: dict[str, Any]) -> list[str]:
    return [goal.name for goal in benchmark.judge(result, quick=False) if not goal.holds]


def test_each_goal_can_be_lost(benchmark: Any) -> None:
    assert lost(benchmark, found()) == []
    assert lost(benchmark, found(faster=1.29)) == [
        "times faster: answers, one prompt at a time",
        "times faster: answers, lm-eval, 8",
        "times faster: log-likelihoods, lm-eval, 8",
    ]
    assert lost(benchmark, found(same=7)) == ["answers equal to lm-eval, 8"]
    assert lost(benchmark, found(differ=(3,))) == [
        f"{name}: rows judged otherwise than by lm-eval" for name in ("acc", "acc_norm")
    ]
    assert lost(benchmark, found(theirs=5.01)) == ["perplexity: relative difference to lm-eval"]


def test_in_16_bits_only_times_are_goals(benchmark: Any) -> None:
    assert lost(benchmark, found(same=7, differ=(3,), theirs=6.0, dtype="bfloat16")) == []
    assert len(lost(benchmark, found(faster=0.5, dtype="bfloat16"))) == 3


def test_times_of_a_quick_run_are_no_goals(benchmark: Any) -> None:
    assert [goal.name for goal in benchmark.judge(found(faster=0.1), quick=True) if "faster" in goal.name] == []


def test_lm_eval_is_compared_at_its_best_batch_size_in_the_same_rounds(benchmark: Any) -> None:
    ways = [Way("quantkit", list, [1.0, 1.0, 2.0]), Way("lm-eval, 1", list, [9.0]), Way("lm-eval, 8", list, [2.0, 3.0, 4.0])]
    report = benchmark.report(ways)
    assert report["best_of_lm_eval"] == "lm-eval, 8"
    assert report["times_faster"]["lm-eval, 8"] == {"median": 2.0, "rounds": [2.0, 3.0, 2.0]}
    assert report["times_faster"]["lm-eval, 1"]["rounds"] == [9.0]


def test_generated_options_hold_the_right_result_once() -> None:
    for row in generated(20):
        texts = [text.split(" = ")[-1] for text in row["choices"]["text"]]
        assert len(set(texts)) == 4
        assert row["answerKey"] in row["choices"]["label"]


def test_accuracy_by_characters_weighs_long_options_by_their_length() -> None:
    rows = Rows(questions=["q"], options=[["long option", "no"]], gold=[0], prompts=[])
    assert rows.accuracies([-6.0, -3.0]) == {"acc": [False], "acc_norm": [True]}
    assert rows.pairs == [("Question: q\nAnswer:", " long option"), ("Question: q\nAnswer:", " no")]


def test_both_tools_give_the_same_numbers_and_every_position_is_counted(
    benchmark: Any, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `harness`)")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = read_rows(None, tokenizer, rows=6, prompts=4, folder=tmp_path)
    result = benchmark.measure(model, tokenizer, rows, [4], rounds=1, max_new_tokens=12) | {"setting": {"dtype": "float32"}}
    goals = benchmark.judge(result, quick=True)
    assert [goal.name for goal in goals if not goal.holds] == []
    assert len(goals) == 5
    counted = {name: way["positions"] for name, way in result["likelihood"]["ways"].items()}
    assert 0 < counted["quantkit"] < counted["lm-eval, 4"]
    benchmark.show(result)
    assert "Log-likelihoods of options" in capsys.readouterr().out
    assert len(Ours(model, tokenizer).one_by_one(rows.prompts[:1], max_new_tokens=2)) == 1
