"""Where does a run start: at step 0, or at the state of a checkpoint?

Found, and refused where it is another run's, before weights are read, which takes minutes for a large model; only what needs
the model in memory is looked at again when it is there. A run that goes on keeps the arithmetic it began with: measured
again, it could come out otherwise, and every later step with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.console import warn
from quantkit.errors import UsageError
from quantkit.plan import QuantizationPlan
from quantkit.processes import is_first, said_by_first, world_size
from quantkit.training.arguments import trainer_arguments
from quantkit.training.checkpoints import RunState, clear_checkpoints, find_checkpoint
from quantkit.training.identity import Change, check_same_run, describe_run, frozen_sha256, in_words, rows_sha256
from quantkit.training.order import items_of, total_steps
from quantkit.training.precision import arithmetic_dtype

if TYPE_CHECKING:
    from quantkit.config import RunConfig
    from quantkit.data import EncodedRow, PreparedData


@dataclass(slots=True)
class Start:
    """A checkpoint, None for step 0; the state to count on in; and what makes the run the run it is."""

    checkpoint: Path | None
    state: RunState
    described: Mapping[str, Any]

    def meet(self, model: Any, config: "RunConfig", device: str) -> None:
        """Take in what only a loaded model says; call it before anything is done to the model."""
        if self.checkpoint is None or "compute_dtype" in config.accept_changes:
            self.state.arithmetic_dtype = said_by_first(lambda: arithmetic_dtype(model, config, device))
        base = said_by_first(lambda: frozen_sha256(model))
        self.described = {**self.described, "facts": {**self.described["facts"], "base": base}}

    def settle(self, config: "RunConfig", total_steps: int, held_out: "list[EncodedRow]", checkpoints: Path) -> None:
        """Check that the run may go on from the checkpoint, or clear the way; note in the state what it is now.

        Raises:
            UsageError: the checkpoint is another run's, or has more steps than this run is to have.
        """
        state = self.state
        if self.checkpoint:
            self._go_on(self.check(config, total_steps), total_steps)
        elif is_first():
            clear_checkpoints(checkpoints)
        state.settings, state.facts, state.versions = (self.described[key] for key in ("settings", "facts", "versions"))
        state.total_steps = total_steps
        if state.evaluation_rows != (compared := rows_sha256(held_out)):
            state.evaluation_loss_before, state.evaluation_rows = None, compared

    def check(self, config: "RunConfig", total_steps: int) -> dict[str, Change]:
        """Check that the run may go on from its checkpoint, by all that is known of it; return the accepted differences.

        Raises:
            UsageError: the checkpoint is another run's, or has more steps than this run is to have.
        """
        state, checkpoint = self.state, self.checkpoint
        if checkpoint is None:
            return {}
        if state.step > total_steps:
            raise UsageError(
                f"{checkpoint}: {state.step} steps are done, this run is to have {total_steps}; raise max_steps or"
                " num_train_epochs, or start a new run"
            )
        return check_same_run(state, self.described, where=checkpoint, total_steps=total_steps, accepted=config.accept_changes)

    def _go_on(self, changes: Mapping[str, Change], total_steps: int) -> None:
        state = self.state
        state.accepted += [
            {"field": name, "was": was, "is": now, "from_step": state.step + 1} for name, (was, now) in changes.items()
        ]
        if is_first():
            if changes:
                warn(f"accepted: {in_words(changes)}. The result is that of no uninterrupted run")
            if state.total_steps != total_steps:
                warn(f"the checkpoint's run was to have {state.total_steps} steps, this one has {total_steps}")


def find_start(
    data: "PreparedData", config: "RunConfig", plan: QuantizationPlan, *, tokenizer: Any, checkpoints: Path, device: str
) -> Start:
    """Return where the run starts, the same in all processes; no weights are loaded.

    Raises:
        UsageError: a setting is not to be had, checkpoints are in the way, the folder cannot be used, or the checkpoint is
            another run's.
        VerificationError: no checkpoint is whole.
    """
    checkpoint = said_by_first(
        lambda: find_checkpoint(checkpoints, config.resume_from_checkpoint, overwrite=config.overwrite, first=is_first())
    )
    described = said_by_first(lambda: describe_run(data, config, tokenizer=tokenizer, device=device, processes=world_size()))
    start = Start(checkpoint, RunState.read(checkpoint) if checkpoint else RunState(), described)
    total = _expected_steps(data, config, start.state)
    start.check(config, total)
    trainer_arguments(config, plan, checkpoints, total, device)
    if config.compute_dtype != "auto":
        arithmetic_dtype(None, config, device)
    return start


def _expected_steps(data: "PreparedData", config: "RunConfig", state: RunState) -> int:
    """Return how many steps the run will have; whether rows can be packed, the model says: as in the checkpoint, until then."""
    wanted = config.packing and config.padding_free
    possible = [
        total_steps(len(items_of(data.train, config, packing=packed)), config, world_size())
        for packed in ((True, False) if wanted else (False,))
    ]
    return state.total_steps if state.total_steps in possible else possible[0]
