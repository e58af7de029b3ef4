"""Does the comparison of what happens at faults run tests that exist, and count what they say?"""

import ast
from pathlib import Path

import pytest
import reliability

TESTS = Path(__file__).resolve().parents[1] / "reliability"


@pytest.mark.parametrize("name", reliability.OURS)
def test_the_tests_it_runs_exist(name: str) -> None:
    file, _, function = reliability.OURS[name].partition("::")
    defined = {node.name for node in ast.parse((TESTS / file).read_text()).body if isinstance(node, ast.FunctionDef)}
    assert not function or function.partition("[")[0] in defined
    assert name in reliability.PEERS


def test_figures_are_added_up_over_the_tests_of_a_report() -> None:
    figure = '<property name="figure" value="{}"/>'
    report = (
        f"<suite>{figure.format(('R1', 3, 4))}<case>{figure.format(['R1', 1, 1])}<property name='x' value='2'/></case></suite>"
    )
    assert reliability.counted(report) == (4, 5)
    assert reliability.counted("<suite/>") == (0, 0)
