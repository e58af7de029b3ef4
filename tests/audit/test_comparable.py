"""What may not be put side by side is found, of lm-eval and of ours; what differs harmlessly is not."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.audit import files
from tests.audit.test_checks import Expected, expect
from tests.audit.test_stories import audit


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (
            "versions.arc_easy",
            2.0,
            ("error", "different settings", "task_version differs between the models compared: 1.0, 2.0"),
        ),
        ("n-shot.arc_easy", 25, ("error", "different settings", "num_fewshot differs between the models compared: 0, 25")),
        ("chat_template_sha", "abc", ("error", "different settings", "chat_template differs")),
        ("config.limit", 50, ("error", "different settings", "limit differs")),
        ("config.batch_size", "1", ("warning", "different settings", "batch_size differs between the models compared: 16, 1")),
        ("config.model_dtype", "torch.float32", ("warning", "different settings", "dtype differs")),
        ("n-samples.arc_easy.effective", 500, ("error", "different rows", "n differs between the models compared: 1000, 500")),
        (
            "results.arc_easy",
            {"acc_norm,none": 0.42, "acc_norm_stderr,none": 0.01561558},
            ("error", "different metrics", "acc and acc_norm stand side by side"),
        ),
    ],
)
def test_what_may_not_stand_in_one_ranking(place: str, value: Any, expected: tuple[str, str, str], tmp_path: Path) -> None:
    one = files.lm_eval_results()
    if expected[1] == "different metrics":
        one["results"]["arc_easy"] = {"acc,none": 0.4, "acc_stderr,none": math.sqrt(0.24 / 999)}
    files.write_json(tmp_path / "a" / "results_x.json", one)
    other = files.changed(files.lm_eval_results("org/Other-1B", right=600), place, value)
    files.write_json(tmp_path / "b" / "results_x.json", other)
    expect(audit(tmp_path), expected)


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("data_fingerprint", "ff" * 32, ("error", "different rows", "2 different sets of rows go by this name")),
        ("settings.max_new_tokens", 64, ("error", "different settings", "max_new_tokens differs between the models")),
        (
            "settings.dtype",
            "float32",
            ("note", "different settings", "dtype differs between the models compared: bfloat16, float32"),
        ),
        ("settings.batch_size", 1, None),
    ],
)
def test_our_results_are_put_side_by_side_as_comparisons_allow(
    place: str, value: Any, expected: Expected, tmp_path: Path
) -> None:
    files.write_json(tmp_path / "a.json", files.quantkit_result(right=30, name="Tiny-Llama"))
    other = files.changed(files.quantkit_result(right=50, artifact="ef" * 32), place, value)
    files.write_json(tmp_path / "b.json", other)
    expect(audit(tmp_path), expected)


@pytest.mark.parametrize(
    ("here", "there", "complains"),
    [
        (("bfloat16", "of the device"), ("float32", "of the weights"), False),
        (("bfloat16", "of the device"), ("float32", "asked for"), True),
        (("bfloat16", "of the device"), ("float32", None), True),
        (("float16", "of the weights"), ("float32", "of the weights"), False),
    ],
)
def test_a_data_type_that_the_weights_ask_for_is_no_mixture(
    here: tuple[str, str | None], there: tuple[str, str | None], complains: bool, tmp_path: Path
) -> None:
    for name, (dtype, reason), artifact in (("a", here, "ab" * 32), ("b", there, "ef" * 32)):
        said = {"dtype": dtype} | ({"dtype_reason": reason} if reason else {})
        result = files.quantkit_result(right=30 if name == "a" else 50, artifact=artifact)
        files.write_json(tmp_path / f"{name}.json", result | {"settings": result["settings"] | said})
    found = [item.found for item in audit(tmp_path) if item.check == "different settings"]
    assert bool(found) == complains
