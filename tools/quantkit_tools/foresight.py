"""Will a run fit into the memory that is there? Forecast from its settings and rows, before the model is loaded.

A run is refused where the forecast itself exceeds what is there, and warned about where only the upper end of its interval
does. Refusing by the upper end would stop runs of which most end well; by the lower end, runs of which nearly all end in the
middle, on a CPU by the kernel and without an error. A refusal costs a flag, an attempt that fails its hours. Where a step does
not fit, `recompute` auto has as many blocks computed again as it takes (`quantkit.forecasting.choice`); one that fits stays as
fast as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantkit.console import format_bytes, say, warn
from quantkit.errors import QuantkitError, UsageError
from quantkit.forecasting.batches import Fullest, fullest_batch
from quantkit.forecasting.choice import chosen, step_bytes
from quantkit.forecasting.forecast import Forecast, forecast_run
from quantkit.forecasting.learning import constants_for
from quantkit.forecasting.measured import forecast_record
from quantkit.forecasting.nearest import Needs, as_flags, in_the_same_batches, nearest, peak_bytes
from quantkit.forecasting.reading import read_shape
from quantkit.forecasting.settings import RunSettings
from quantkit.forecasting.shape import ModelShape
from quantkit.forecasting.timing import flops_per_token
from quantkit.memory import free_bytes, own_bytes
from quantkit.methods import Methods
from quantkit.processes import said_by_first, world_size
from quantkit.recompute import AUTO
from quantkit.spec import DENSE_BITS
from quantkit.training.shortage import OutOfMemoryError
from quantkit_registry.store import default_root
from quantkit_tools.plan_show import peak_text
from quantkit_tools.planning import RunPlan

if TYPE_CHECKING:
    from quantkit.data import PreparedData
    from quantkit.training.start import Start


@dataclass(frozen=True, slots=True)
class Foresight:
    """A run's forecast beside the memory that is there."""

    forecast: Forecast
    room_bytes: int
    """What the run may take of its device: what is free, and what this process holds already."""
    held_bytes: int
    """What this process holds already, before the model is loaded."""
    without: Forecast | None = None
    """Where `auto` chose what is computed again: the forecast with nothing computed again."""

    @property
    def asked(self) -> Forecast:
        """Return the forecast of the settings as they were given."""
        return self.without or self.forecast

    @property
    def fits(self) -> bool:
        """Return whether the forecast is no more than what is there."""
        return self.forecast.peak_bytes <= self.room_bytes

    def to_dict(self, *, forced: bool) -> dict[str, Any]:
        """Return what the run's record keeps."""
        refused = forced and not self.fits
        return forecast_record(self.forecast, room_bytes=self.room_bytes, held_bytes=self.held_bytes, forced=refused)


def foresee(run: RunPlan, data: "PreparedData | None", begun: "Start | None" = None, *, methods: Methods) -> Foresight | None:
    """Return the forecast of a run over its rows; None, with a word why, for models whose shape cannot be told.

    Without rows, all are taken to be as long as settings let them be.
    What `auto` has computed again is chosen here, in the first process for all, and noted where the run has `begun`: what a
    checkpoint has there is kept where it fits.
    """
    config = run.config
    constants = constants_for(run.device, run.target.parent, default_root())
    processes = world_size()
    try:
        shape = read_shape(config.model_name_or_path, revision=config.revision, trust_remote_code=config.trust_remote_code)
        settings = RunSettings.of(
            config,
            run.plan,
            device=run.device,
            arithmetic=expected_arithmetic(run, shape),
            folds_exactly=methods.folds_exactly(run.plan.method),
            **({} if data is None else _of_rows(fullest_batch(data.train, config, processes=processes))),
            **_split(run, processes),
        )
        asked = forecast_run(shape, settings, constants)
    except QuantkitError as error:
        say(f"memory is not forecast for this run: {error}")
        return None
    held = own_bytes(run.device)
    room = room_bytes(run.device, held=held, context_bytes=constants.cuda_context_bytes)
    if config.recompute != AUTO or config.gradient_checkpointing:
        return Foresight(asked, room, held)
    recorded = None if begun is None else begun.state.recompute
    again = said_by_first(lambda: chosen(asked, room, recorded=recorded).settings.recompute)
    if begun is not None:
        begun.state.recompute = again
    return Foresight(forecast_run(shape, settings.with_changes(recompute=again), constants), room, held, asked)


def require_room(found: Foresight | None, *, force: bool) -> dict[str, Any] | None:
    """Say what a run is expected to take; stop it where that is more than is there, unless it is forced.

    Returns what the run's record keeps.

    Raises:
        UsageError: the forecast exceeds the memory; the text names both and the nearest settings that fit.
    """
    if found is None:
        return None
    forecast, record, there = found.forecast, found.to_dict(forced=force), there_text(found)
    expected = peak_text(forecast)
    say(f"memory expected at the peak ({forecast.largest.name}): {expected}; {there}{recomputed_text(found)}")
    if found.fits:
        if text := doubt(found):
            warn(text)
        return record
    fits = advice(found, found.room_bytes)
    if force:
        warn(f"memory will probably not suffice; started all the same, as force is set: {fits}")
        return record
    raise UsageError(
        f"memory expected at the peak ({forecast.largest.name}): {expected}, but only {there}: {fits}, or start all the same"
        " with --force"
    )


def there_text(found: Foresight) -> str:
    """Return what is there."""
    return f"{format_bytes(found.room_bytes)} are there"


def doubt(found: Foresight) -> str:
    """Return what to change where the upper end of the interval does not fit; nothing where it does."""
    constants = found.forecast.constants
    if found.forecast.interval[1] <= found.room_bytes:
        return ""
    return f"memory may not suffice: {advice(found, round(found.room_bytes / constants.high))}"


def recomputed_text(found: Foresight) -> str:
    """Return what `auto` chose, and why, as the end of a sentence; nothing where the settings said it."""
    without, forecast = found.without, found.forecast
    if without is None:
        return ""
    if forecast.settings.recompute == "none":
        return "; nothing is computed again (recompute auto)"
    again = flops_per_token(forecast.shape, forecast.settings) / flops_per_token(without.shape, without.settings) - 1
    text = (
        f"; recompute auto is {forecast.settings.recompute} of {forecast.shape.blocks} decoder blocks, {again:.0%} more"
        " arithmetic"
    )
    if step_bytes(without) <= found.room_bytes:
        return f"{text}, as in the checkpoint"
    text += f": without, a step takes {format_bytes(step_bytes(without))}"
    other = nearest(without, found.room_bytes)
    if other is None or other.settings.recompute != "none":
        return text
    return f"{text}; {as_flags(without.settings, other.settings)} computes nothing again"


def advice(found: Foresight, room_bytes: int, *, needs: Needs = peak_bytes) -> str:
    """Return which settings fit, as flags: the nearest, and those with the same batches; or that none does."""
    asked = found.asked
    other = nearest(asked, room_bytes, needs=needs)
    if other is None:
        fit = f"{found.room_bytes / 2**30:.3g}GiB"
        return (
            f"no batch size or recomputing makes it fit; quantkit plan {found.forecast.shape.name} --fit {fit} looks for other"
            " methods, ranks and lengths"
        )
    texts = [f"{as_flags(asked.settings, other.settings)} learns the same in {format_bytes(other.peak_bytes)}"]
    same = in_the_same_batches(asked, room_bytes, needs=needs)
    if same is not None and asked.settings != same.settings != other.settings:
        texts.append(f"{as_flags(asked.settings, same.settings)} in {format_bytes(same.peak_bytes)}")
    return ", ".join(texts)


@contextmanager
def telling_what_fits(found: Foresight | None) -> Iterator[None]:
    """Add to an error that says memory ran out in a step which settings fit, now that this forecast is known to be too low.

    Those are settings the interval of whose steps ends below what was there, and whose steps need less than those tried.
    """
    try:
        yield
    except OutOfMemoryError as error:
        if found is None:
            raise
        forecast = found.forecast
        room = min(round(found.room_bytes / forecast.constants.high), step_bytes(forecast) - 1)
        raise OutOfMemoryError(error.found, error.checkpoint, fits=advice(found, room, needs=step_bytes)) from None


def expected_arithmetic(run: RunPlan, shape: ModelShape) -> str:
    """Return the data type in which training will compute, by the rule of `quantkit.training.precision`."""
    from quantkit.training.precision import faster_dtype

    if run.config.compute_dtype != "auto":
        return run.config.compute_dtype
    dtype = faster_dtype(run.device)
    if dtype == "float32" and run.device == "cpu":
        loaded = DENSE_BITS.get(run.plan.compute_dtype, 32) // 8
        dense = shape.dense_parameters if run.plan.spec.is_quantized else shape.parameters
        if run.plan.adapter.kind != "NoPeft" and (4 - loaded) * dense > free_bytes("cpu") / 2:
            return "bfloat16"
    return dtype


def room_bytes(device: str, *, held: int, context_bytes: int) -> int:
    """Return what this process may take of a device in all; processes that share a CPU's memory get equal parts."""
    if device.startswith("cuda"):
        return free_bytes(device) + held + context_bytes  # asking a GPU makes a context on it
    return free_bytes(device) // world_size() + held


def _of_rows(batch: Fullest) -> dict[str, Any]:
    """Return what of a run's settings its rows say."""
    return {
        "rows": batch.items,
        "tokens": batch.tokens,
        "supervised": batch.supervised,
        "length": batch.longest,
        "mean_length": batch.mean_length,
        "steps": batch.steps,
    }


def _split(run: RunPlan, processes: int) -> dict[str, Any]:
    if processes == 1:
        return {}
    return {"processes": processes, "strategy": "fsdp" if run.config.sharding == "fsdp2" else "ddp"}
