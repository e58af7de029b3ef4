"""Does this model keep rows apart when they stand in one sequence, and when they share a beginning? It is tried.

A few short rows go through the model alone, padded, and laid out; what is laid out must agree with the rows alone as well as
the padded batch does. A list of families, the alternative, is wrong about the next one and about repository code: recurrent
and linear attention, ALiBi, biases on distance, prefix masks and attention that is not dispatched all show up as a difference
or an error here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from quantkit.console import say
from quantkit.data.collate import Collator
from quantkit.training.layouts import Row, lay_out
from quantkit.training.modes import undisturbed
from quantkit.training.supervised import output_head
from quantkit.training.tiles import Tail, logits_tail

if TYPE_CHECKING:
    from quantkit.config import RunConfig

FLOOR = 1e-4
"""Relative difference of logits that is rounding in any case."""
MARGIN = 4.0
"""A layout may differ from the rows alone by this many times what padding differs by (8-bit activations, bfloat16)."""
SHARED, OWN = 6, (5, 9, 7)


@dataclass(frozen=True, slots=True)
class Levers:
    """What is in effect: of the settings of the same names, those that this model allows."""

    padding_free: bool = False
    prefix_sharing: bool = False
    packing: bool = False
    supervised_only: bool = False
    """Whether the loss is taken on supervised positions only."""
    tail: Tail | None = None
    """What the model does to the output of its head, where it is known: the loss is then taken in tiles."""


def usable_levers(model: Any, config: "RunConfig", token_ids: Sequence[int], *, device: str, notice: bool = True) -> Levers:
    """Return which of the wanted levers keep this model's results; with `notice`, say in one line each why one is off.

    `token_ids` are some the model has (of a training row); the model's modes and random states are as before.
    """
    tell: Callable[[str], None] = say if notice else lambda _: None
    head, tail = output_head(model), None
    narrow = config.loss_positions == "supervised" and head is not None
    if narrow and (tail := logits_tail(model, head, token_id=token_ids[0], device=device)) is None:
        tell("the loss is not taken in tiles: what this model does to the output of its head is not known")
    levers = Levers(supervised_only=narrow, tail=tail)
    if not config.padding_free:
        return levers
    trial = _Trial(model, token_ids, device)
    if fault := trial.fault(share=False):
        with_it = [name for name in ("prefix_sharing", "packing") if getattr(config, name)]
        more = f" (and with it {', '.join(with_it)})" if with_it else ""
        tell(f"padding_free is off for this model{more}: {fault}")
        return levers
    sharing = config.prefix_sharing
    if sharing and head is None:
        tell("prefix_sharing is off for this model: its own loss counts every token of every row")
        sharing = False
    if sharing and (fault := trial.fault(share=True)):
        tell(f"prefix_sharing is off for this model: {fault}")
        sharing = False
    return replace(levers, padding_free=True, prefix_sharing=sharing, packing=config.packing)


class _Trial:
    """Short rows, and how far a layout of them may be from each of them alone."""

    def __init__(self, model: Any, token_ids: Sequence[int], device: str) -> None:
        self._model, self._device = model, device
        ids = [token_ids[at % len(token_ids)] for at in range(SHARED + sum(OWN))]
        ends = [SHARED + sum(OWN[: number + 1]) for number in range(len(OWN))]
        own = [ids[end - length : end] for end, length in zip(ends, OWN, strict=True)]
        self._rows = [ids[:SHARED] + own[0], ids[:SHARED] + own[1], own[2]]
        self._alone: list[Any] = []

    def fault(self, *, share: bool) -> str:
        """Return why the layout does not do for this model, "" when it does."""
        from quantkit.training.attention import laid_out, rows_apart

        rows: list[Row] = [(row, [-100] * len(row)) for row in self._rows]
        flat = lay_out(rows, share=share, least_saved=1)
        mask, ids, positions = [1] * len(flat.input_ids), flat.input_ids, flat.position_ids
        try:
            with undisturbed(self._model):
                allowed = self._allowed()
                with rows_apart(self._model), laid_out(flat.layout, fused=True):
                    logits = self._logits(input_ids=[ids], position_ids=[positions], attention_mask=[mask])[0]
        except Exception as error:  # whatever a model's code does not expect
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        found = self._difference([logits[list(places)] for places in flat.places])
        return (
            "" if found <= allowed else f"rows in one sequence give other logits than alone (relative difference {found:.1e})"
        )

    def _allowed(self) -> float:
        """Return what a layout may differ by: what padding does, with a margin."""
        rows = self._rows
        self._alone = self._alone or [self._logits(input_ids=[row])[0] for row in rows]
        padded = Collator(0)([{"input_ids": row, "labels": row} for row in rows])
        together = self._logits(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"])
        noise = self._difference([logits[: len(row)] for logits, row in zip(together, rows, strict=True)])
        return max(FLOOR, MARGIN * noise)

    def _logits(self, **inputs: Any) -> Any:
        import torch

        with torch.no_grad():
            tensors = {name: torch.as_tensor(value, device=self._device) for name, value in inputs.items()}
            return self._model(**tensors, use_cache=False).logits.double()

    def _difference(self, rows: Sequence[Any]) -> float:
        """Return the largest relative L2 difference of a row's logits from the row's alone."""
        pairs = zip(rows, self._alone, strict=True)
        return max(float((row - alone).norm() / alone.norm().clamp_min(1e-30)) for row, alone in pairs)
