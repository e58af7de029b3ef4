"""R9: does a number that is not finite end the run at its step, and is nothing that came of it ever kept?

NaN and infinities are put into the loss, a gradient, a trained weight, what the first layer is given, and the optimizer's
second moments, at steps 2 to 5 of four kinds of runs. The run must stop at that step and name rows of it; what it leaves as its
newest checkpoint must be the state after the step before, from which it goes on to the end of the run without the fault.
"""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from quantkit.errors import QuantkitError, VerificationError
from quantkit.layers import bare_model
from quantkit.storable import check_before_saving
from quantkit.training.checkpoints import checkpoint_folders
from tests.reliability.conftest import Figure
from tests.reliability.promises import FULL
from tests.reliability.training import KINDS, Small, at_each_pass, settings, state_of
from tests.training.helpers import equal, trained

STEPS = 6
NAN, INF = float("nan"), float("inf")
Fault = Callable[[Any, int, float], AbstractContextManager[None]]


def trained_weight(model: Any) -> Any:
    return next(
        item for name, item in model.named_parameters() if item.requires_grad and ("lora_B" in name or "lambda_b" in name)
    )


def when(step: int, act: Callable[[Any], None]) -> AbstractContextManager[None]:
    """Call `act(trainer)` when a step begins, once."""

    def at(trainer: Any, _inputs: Any) -> None:
        if trainer.state.global_step == step - 1 and not trainer.rows:
            act(trainer)

    return at_each_pass(at)


@contextmanager
def in_the_loss(_model: Any, step: int, value: float) -> Any:
    from quantkit.training import loop

    own, hit = loop.supervised_loss, [False]
    loop.supervised_loss = lambda *given, **named: own(*given, **named) * (value if hit[0] else 1.0)
    try:
        with when(step, lambda _: hit.__setitem__(0, True)):
            yield
    finally:
        loop.supervised_loss = own


@contextmanager
def in_a_gradient(model: Any, step: int, value: float) -> Any:
    hit = [False]
    handle = trained_weight(model).register_hook(lambda gradient: gradient * (value if hit[0] else 1.0))
    try:
        with when(step, lambda _: hit.__setitem__(0, True)):
            yield
    finally:
        handle.remove()


def in_a_weight(model: Any, step: int, value: float) -> Any:
    return when(step, lambda _: trained_weight(model).data.view(-1)[:1].fill_(value))


@contextmanager
def in_the_inputs(model: Any, step: int, value: float) -> Any:
    hit = [False]
    embeddings = bare_model(model).get_input_embeddings()
    handle = embeddings.register_forward_hook(lambda _module, _inputs, output: output * (value if hit[0] else 1.0))
    try:
        with when(step, lambda _: hit.__setitem__(0, True)):
            yield
    finally:
        handle.remove()


def in_the_optimizer(model: Any, step: int, value: float) -> Any:
    return when(step, lambda trainer: trainer.optimizer.state[trained_weight(model)]["exp_avg_sq"].view(-1)[:1].fill_(value))


FAULTS: dict[str, tuple[Fault, str, bool]] = {
    "loss": (in_the_loss, r"step {step} \(rows [\d, ]+\): the loss is (nan|-?inf), which reached no weight", True),
    "gradient": (
        in_a_gradient,
        r"step {step} \(rows [\d, ]+\): the norm of the gradients is (nan|inf), which reached no",
        True,
    ),
    "weight": (in_a_weight, r"step {step} \(rows [\d, ]+\): the loss is nan; before this step weights 1 \(", False),
    "inputs": (in_the_inputs, r"step {step} \(rows [\d, ]+\): the loss is nan, which reached no weight", True),
    "optimizer": (in_the_optimizer, r"after step {step} \(rows [\d, ]+\): .*the optimizer's states of 1 \(", False),
}
"""Where → how, what is said, and whether weights and optimizer are still those after the step before."""
CASES = [
    (name, where, 2 + (row + column) % 4, (NAN, INF, -INF)[(row + column) % 3])
    for row, name in enumerate(KINDS)
    for column, where in enumerate(FAULTS)
]
"""Kind, place, step and value: 20, each place at four steps and with every value."""
QUICK = CASES[::6] + CASES[4:5]
"""One of each place, and of each kind."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The model, its tokenizer and rows."""
    return Small(tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize(("name", "where", "step", "value"), CASES if FULL else QUICK)
def test_a_number_that_is_not_finite_ends_the_run_at_its_step_and_goes_into_nothing(  # noqa: PLR0917
    name: str, where: str, step: int, value: float, small: Small, tmp_path: Path, figure: Figure
) -> None:
    fault, text, state_is_good = FAULTS[where]
    chosen = settings(name, max_steps=STEPS, save_steps=0 if state_is_good else 1)
    model = small.fresh(name)
    with fault(model, step, value), pytest.raises(QuantkitError) as caught:
        small.run(model, chosen, tmp_path)
    said = str(caught.value)
    newest = checkpoint_folders(tmp_path)[0]
    stopped = re.search(text.format(step=step), said) is not None and str(newest) in said
    rows = {int(number) for number in re.findall(r"\d+", re.search(r"rows ([\d, ]+)", said)[1])}  # type: ignore[index]
    named = rows <= {row.row for row in small.data.train} and bool(rows)
    finite = all(bool(item.isfinite().all()) for item in load_file(newest / "adapter_model.safetensors").values())
    finite = finite and all(bool(item.isfinite().all()) for item in _tensors(state_of(newest)["optimizer.pt"]))
    if where == "weight":  # and the model in memory, which is not, is refused where an artifact would be saved
        with pytest.raises(VerificationError, match="not finite"):
            check_before_saving(model, {"kind": "adapter"})
    again = small.fresh(name)
    resumed = small.run(again, chosen.with_changes(resume_from_checkpoint=True), tmp_path)
    straight = small.fresh(name)
    whole = small.run(straight, chosen.with_changes(save_steps=0), tmp_path / "whole")
    as_if_nothing = resumed.resumed_from == step - 1 and resumed.losses == whole.losses
    figure("R9", int(stopped and named and finite and as_if_nothing and equal(trained(again), trained(straight))), 1)


def _tensors(nest: Any) -> list[torch.Tensor]:
    if torch.is_tensor(nest):
        return [nest]
    values = nest.values() if isinstance(nest, dict) else nest if isinstance(nest, list | tuple) else ()
    return [tensor for value in values for tensor in _tensors(value)]
