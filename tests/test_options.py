"""Do loose values become typed settings, and is what does not fit named?"""

from dataclasses import dataclass
from typing import Literal

import pytest

from quantkit.errors import UsageError
from quantkit.options import build_options, check_value


@dataclass(frozen=True)
class Options:
    bits: Literal[4, 8] = 4
    group_size: int = 64
    damp_percent: float = 0.01
    symmetric: bool = True
    ignore: tuple[str, ...] = ()
    activations_bits: Literal[8] | None = None
    alpha: float | Literal["search"] = 0.5


@dataclass(frozen=True)
class Required:
    rank: int


def test_text_becomes_the_annotated_type():
    options = build_options(Options, {"group_size": "32", "damp_percent": "0.1", "symmetric": "false"}, where="here")
    assert options == Options(group_size=32, damp_percent=0.1, symmetric=False)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("bits", "8", 8),
        ("activations_bits", "8", 8),
        ("activations_bits", "none", None),
        ("alpha", "0.25", 0.25),
        ("alpha", "search", "search"),
    ],
)
def test_choices_can_be_spelled_as_text(name, text, value):
    found = getattr(build_options(Options, {name: text}, where="here"), name)
    assert (found, type(found)) == (value, type(value))


def test_a_text_may_spell_one_of_the_numbers_to_choose_from():
    assert build_options(Options, {"bits": "8"}, where="here").bits == 8
    with pytest.raises(UsageError, match="bits is '5': Input should be 4 or 8"):
        build_options(Options, {"bits": "5"}, where="here")


def test_what_is_not_given_has_its_default():
    assert build_options(Options, {}, where="here") == Options()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"groupsize": 1},
            r"here: unknown option 'groupsize'\. Did you mean 'group_size'\? Known: bits, group_size",
        ),
        ({"group_size": "many"}, "here: group_size is 'many': Input should be a valid integer"),
        ({"bits": 5}, "here: bits is 5: Input should be 4 or 8"),
        ({"symmetric": "perhaps"}, "here: symmetric is 'perhaps': Input should be a valid boolean"),
    ],
)
def test_a_value_that_does_not_fit_is_named(values, text):
    with pytest.raises(UsageError, match=text):
        build_options(Options, values, where="here")


def test_a_required_option_that_is_missing_is_named():
    with pytest.raises(UsageError, match=r"here: .*rank"):
        build_options(Required, {}, where="here")


def test_read_strictly_nothing_is_converted():
    assert check_value(Options, "group_size", 32, where="here", strict=True) == 32
    assert check_value(Options, "ignore", ["lm_head"], where="here", strict=True) == ("lm_head",)
    with pytest.raises(UsageError, match="here: group_size is '32'"):
        check_value(Options, "group_size", "32", where="here", strict=True)


def test_what_json_cannot_carry_is_named():
    with pytest.raises(UsageError, match=r"here: group_size is .*object.*JSON"):
        check_value(Options, "group_size", object(), where="here", strict=True)
