"""R10: is each way in which a merge goes wrong without an error elsewhere refused, and nothing written?

The cases are those of `tests/merging/test_refused_*.py`, which have many more; these twelve are what the promise counts.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import VerificationError
from tests.merging import test_refused_adapters as adapters
from tests.merging import test_refused_bases as bases
from tests.merging.folders import edit_tensors, simple
from tests.merging.spoilt import SPOILT, refused
from tests.reliability.conftest import Figure

Case = tuple[Path, Path, Any]


def spoilt(fault: str) -> Callable[[Case], None]:
    """Return the refusal of an adapter whose tensors were changed in this way."""

    def is_refused(case: Case) -> None:
        change, text = SPOILT[fault]
        edit_tensors(case[1], change)
        refused(case, VerificationError, text)

    return is_refused


def alpha_edited(case: Case) -> None:
    adapters.test_a_configuration_that_differs_from_the_record(case, {"lora_alpha": 64}, "lora_alpha is 64, recorded was 8")


FAULTS: dict[str, Callable[[Case], None]] = {
    "another base of the same shape": bases.test_another_base_than_the_recorded_one,
    "keys renamed throughout": spoilt("renamed throughout"),
    "one layer's keys renamed": spoilt("a renamed layer"),
    "a tensor missing": spoilt("a tensor missing"),
    "alpha edited": alpha_edited,
    "rank edited": adapters.test_a_rank_that_is_not_that_of_the_tensors,
    "NaN in the adapter": spoilt("nan"),
    "NaN in the base": bases.test_a_base_with_values_that_are_not_finite,
    "tied head and embeddings that differ": bases.test_tied_embeddings_that_differ,
    "no tensors": spoilt("empty"),
    "never trained": spoilt("never trained"),
    "merged already": adapters.test_an_adapter_that_is_merged_already,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A base, an adapter on it, and the plan: copied for each fault."""
    return simple(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_merge_that_would_go_wrong_is_refused(fault: str, made: Case, tmp_path: Path, figure: Figure) -> None:
    base, adapter, plan = made
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(adapter, tmp_path / "adapter")
    FAULTS[fault]((tmp_path / "base", tmp_path / "adapter", plan))
    figure("R10", 1, 1)
