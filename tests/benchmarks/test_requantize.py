"""Does the requantize benchmark call a lost gain lost, and give the tests' model something to learn?"""

from requantize import judge
from requantize_cases import turn


def test_a_base_that_keeps_too_little_is_lost_and_one_no_better_than_rounding_too():
    found = {
        "bases": {"A": {"kept": {"requantized": 0.79, "nearest": 0.1}}, "B": {"kept": {"requantized": 0.9, "nearest": 0.95}}}
    }
    assert [goal.holds for goal in judge(found)] == [False, True, True, False]


def test_turned_answers_name_the_result_first():
    row = {"question": "?", "answer": "5+7=12 \\boxed{12}"}
    assert turn(row) == {"question": "?", "answer": "12 because 5+7"}
