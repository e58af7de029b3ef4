"""R3: is a run that was interrupted at any step and resumed the run that was not, bit for bit?

Weights, optimizer, schedule, random states and losses are compared after the last step. Rows are shuffled and packed, two
passes make a step; every other resumed run gets its batches from two other processes.
"""

from pathlib import Path

import pytest
import torch

from tests.reliability.conftest import Figure
from tests.reliability.promises import FULL, amount
from tests.reliability.training import KINDS, Small, same, settings, state_of
from tests.training.helpers import equal, trained

STEPS = amount(8, 20)
QUICK = {"LoRA": (1, 5, 8), "DoRA": (4,), "VeRA": (3,), "QLORA": (2, 7)}
"""Steps tried in the default tests: the first and the last, in the middle of an epoch and at its end."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The model, its tokenizer and rows."""
    return Small(tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize("name", KINDS)
def test_a_run_interrupted_at_any_step_goes_on_bit_for_bit(name: str, small: Small, tmp_path: Path, figure: Figure) -> None:
    chosen = settings(name, max_steps=STEPS, save_steps=STEPS)
    straight = small.fresh(name)
    whole = small.run(straight, chosen, tmp_path / "whole")
    expected = state_of(tmp_path / "whole" / f"checkpoint-{STEPS}")
    assert whole.packing
    points = range(1, STEPS + 1) if FULL else QUICK[name]
    held = 0
    for step in points:
        folder = tmp_path / str(step)
        stopped = small.run_and_stop(small.fresh(name), chosen, folder, after=step)
        assert (stopped.interrupted, stopped.steps) == (True, step)
        model = small.fresh(name)
        torch.manual_seed(step)  # another process has other random states
        again = chosen.with_changes(resume_from_checkpoint=True, dataloader_num_workers=2 * (step % 2))
        resumed = small.run(model, again, folder)
        held += (
            resumed.resumed_from == step
            and resumed.losses == whole.losses
            and (resumed.tokens, resumed.response_tokens) == (whole.tokens, whole.response_tokens)
            and equal(trained(model), trained(straight))
            and same(state_of(folder / f"checkpoint-{STEPS}"), expected)
        )
    figure("R3", held, len(points))
