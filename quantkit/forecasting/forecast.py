"""How much memory does a run take, stage by stage, and what is it made of?

`forecast_run` puts the counted items of each moment of a run together: loading, the loss, the backward pass, the optimizer's
step, folding in, saving. The peak is the largest moment, not the sum of everything: gradients and the activations of the last
block do not live at once, and adding them up is how forecasts come to be twice the truth.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quantkit.forecasting.activations import activations
from quantkit.forecasting.adapters import adapter_size
from quantkit.forecasting.constants import CONSTANTS, MEASURED_TOKENS, Constants
from quantkit.forecasting.folding import end_of_run, streaming_bytes
from quantkit.forecasting.items import (
    adapter_weights,
    backward_items,
    beside_gpus,
    casting,
    earlier_gradients,
    held_activations,
    held_weights,
    loaded_weights,
    norming,
    quantizing,
    reading,
    step_work,
    trial,
    workspace,
    written_bytes,
)
from quantkit.forecasting.moments import COMPUTING, JUDGING, STEP, TRAINING, Moment
from quantkit.forecasting.optimizers import optimizer_states
from quantkit.forecasting.parallel import described, of_each_device
from quantkit.forecasting.settings import RunSettings
from quantkit.forecasting.shape import ModelShape
from quantkit.forecasting.timing import flops_per_token


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The memory that a run is expected to take on one device, and beside it."""

    shape: ModelShape
    settings: RunSettings
    constants: Constants
    moments: tuple[Moment, ...]
    """In the order of the run; items are counted, without libraries and allocators."""
    trained_parameters: int
    host_bytes: int
    """On the CPU beside GPUs: paged optimizer states, offloaded activations, what is loaded there to be split."""
    disk_bytes: int
    """What the run writes: its artifact, and one checkpoint while it trains."""
    notes: tuple[str, ...] = ()
    devices: tuple[Mapping[str, Any], ...] = field(default=())
    """Per GPU, where there are several: its number and counted bytes of its peak."""

    @property
    def largest(self) -> Moment:
        """Return the moment of the peak."""
        return max(self.moments, key=self.total)

    def moment(self, name: str) -> Moment:
        """Return a moment by its name."""
        return next(moment for moment in self.moments if moment.name == name)

    @property
    def training(self) -> Moment:
        """Return the largest moment of training."""
        return max((moment for moment in self.moments if moment.name in TRAINING), key=self.total)

    def total(self, moment: Moment) -> int:
        """Return a moment's bytes with libraries, context and what allocators hold beyond: resident, or taken of a GPU."""
        return self.beyond + self.computing(moment) + moment.size_bytes + self.held(moment)

    def held(self, moment: Moment) -> int:
        """Return the bytes that the device's allocator holds beyond what is allocated."""
        if self.settings.device == "cpu":
            return round(self.constants.cpu_slack * moment.passing_bytes)
        return round(self.constants.cuda_slack * moment.size_bytes)

    @property
    def beyond(self) -> int:
        """Return the bytes of libraries or of a GPU's context."""
        if self.settings.device != "cpu":
            return self.constants.cuda_context_bytes
        return self.constants.process_bytes

    def computing(self, moment: Moment) -> int:
        """Return the bytes that a CPU process takes besides while it computes: compiled products, the heap's holes."""
        if self.settings.device != "cpu":
            return 0
        compiles = self.settings.arithmetic == "bfloat16" and moment.name in (*COMPUTING, *JUDGING)
        compiled = self.constants.compiled_bytes if compiles else 0
        return compiled + (self.constants.varied_bytes if self.settings.varied and moment.name in COMPUTING else 0)

    @property
    def allocated_bytes(self) -> int:
        """Return the counted peak: on a GPU what `max_memory_allocated` should say."""
        return self.largest.size_bytes

    @property
    def peak_bytes(self) -> int:
        """Return the peak with everything: resident memory of a CPU process, or what is taken of a GPU."""
        return self.total(self.largest)

    @property
    def interval(self) -> tuple[int, int]:
        """Return the bytes between which the peak is expected."""
        return round(self.peak_bytes * self.constants.low), round(self.peak_bytes * self.constants.high)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        low, high = self.interval
        return {
            "model": {"name": self.shape.name, "family": self.shape.family, "parameters": self.shape.parameters},
            "settings": self.settings.to_dict(),
            "trained_parameters": self.trained_parameters,
            "flops_per_token": flops_per_token(self.shape, self.settings),
            "moments": [{**moment.to_dict(), "total_bytes": self.total(moment)} for moment in self.moments],
            "peak_moment": self.largest.name,
            "allocated_bytes": self.allocated_bytes,
            "peak_bytes": self.peak_bytes,
            "interval": {
                "low_bytes": low,
                "high_bytes": high,
                "coverage": self.constants.coverage,
                "runs": self.constants.runs,
            },
            "constants": self.constants.source,
            "devices": [dict(item) for item in self.devices],
            "streaming_merge_bytes": streaming_bytes(self.shape),
            "host_bytes": self.host_bytes,
            "disk_bytes": self.disk_bytes,
            "notes": list(self.notes),
        }


def forecast_run(shape: ModelShape, settings: RunSettings, constants: Constants = CONSTANTS) -> Forecast:
    """Return the forecast of a run on one device, or of each GPU's share where there are several.

    Raises:
        UsageError: the adapter's targets match no layer.
    """
    size = adapter_size(shape, settings.adapter)
    kept = activations(shape, settings, size)
    loaded, weights, adapters = loaded_weights(shape, settings), held_weights(shape, settings), adapter_weights(settings, size)
    states = optimizer_states(settings.optim)
    state_bytes = states.size(size.trained, settings.trained_bytes)
    on_device = 0 if states.paged and settings.device != "cpu" else state_bytes
    gradients = size.trained * settings.trained_bytes
    notes = [] if states.known else [f"optim {settings.optim} is not known here; its states are counted as AdamW's"]
    if settings.device == "cpu" and settings.batch_tokens > MEASURED_TOKENS:
        notes.append(
            f"a batch of {settings.batch_tokens:,} tokens is larger than any that the interval was measured on"
            f" ({MEASURED_TOKENS:,}): with room to spare, the C library may hold more than that (at 3,928 tokens 1.10 to 1.15"
            " times the forecast; not where blocks are computed again); it gives it back where half of what was free is taken"
        )
    always = weights | adapters | {"optimizer states": on_device, **workspace(settings, constants)}
    cast = casting(shape, settings)
    moments = [
        Moment("load", loaded | reading(shape, settings)),
        Moment("start", loaded | adapters | max(cast, norming(settings, size), key=lambda items: sum(items.values()))),
        Moment("trial", weights | adapters | trial(shape)),
        Moment(
            "loss",
            always
            | earlier_gradients(settings, gradients)
            | held_activations(kept, settings, shape)
            | {"logits and loss": kept.logits},
        ),
        Moment("backward", always | backward_items(kept, settings, shape, gradients)),
        Moment("step", always | {"gradients": gradients, "optimizer's working memory": step_work(settings, size)}),
    ]
    if cast and settings.adapter.kind != "NoPeft":
        moments.append(Moment("end", loaded | adapters | {"optimizer states": on_device} | casting(shape, settings, back=True)))
    if settings.quantizes_base:
        moments.insert(0, Moment("quantize", quantizing(shape, settings)))
    moments += [Moment(name, items) for name, items in end_of_run(shape, settings, {**loaded, **adapters}).items()]
    found, devices = _per_device(moments, shape, settings, weights)
    offloaded = kept.kept(settings.with_changes(offload=False), shape.blocks) if settings.offload else 0
    return Forecast(
        shape=shape,
        settings=settings,
        constants=constants,
        moments=tuple(found),
        trained_parameters=size.trained,
        host_bytes=0
        if settings.device == "cpu"
        else beside_gpus(shape, settings, loaded, offloaded, state_bytes if states.paged else 0),
        disk_bytes=written_bytes(shape, settings, size) + 4 * size.trained + state_bytes,
        notes=tuple(notes),
        devices=devices,
    )


def _per_device(
    moments: list[Moment], shape: ModelShape, settings: RunSettings, weights: Mapping[str, int]
) -> tuple[list[Moment], tuple[Mapping[str, Any], ...]]:
    """Return the moments on the fullest of the devices, and the peak of a step on each of them."""
    if settings.strategy == "single":
        return moments, ()
    if settings.strategy == "fsdp" and settings.device != "cpu":  # each process loads, and the first folds in, on the CPU
        moments = [item if item.name in STEP[1:] else Moment(item.name, {}) for item in moments]
    mapped = ("load", *TRAINING) if settings.strategy == "device_map" else STEP[1:]
    each = {item.name: of_each_device(item.items, shape, settings, weights) for item in moments if item.name in mapped}
    fullest = [
        Moment(item.name, max(each[item.name], key=lambda items: sum(items.values()))) if item.name in each else item
        for item in moments
    ]
    peaks = []
    for number in range(settings.processes):
        name = max(STEP[1:], key=lambda moment: sum(each[moment][number].values()))
        peaks.append(each[name][number])
    return fullest, described(peaks)
