"""How much memory does a run take, stage by stage, and what is it made of?

`forecast_run` puts the counted items of each moment of a run together: loading, the loss, the backward pass, the optimizer's
step, folding in, saving. The peak is the largest moment, not the sum of everything: gradients and the activations of the last
block do not live at once, and adding them up is how forecasts come to be twice the truth.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quantkit.forecasting.activations import Activations, activations
from quantkit.forecasting.adapters import AdapterSize, adapter_size
from quantkit.forecasting.constants import CONSTANTS, Constants
from quantkit.forecasting.optimizers import optimizer_states
from quantkit.forecasting.parallel import described, of_each_device
from quantkit.forecasting.settings import RunSettings
from quantkit.forecasting.shape import ModelShape
from quantkit.forecasting.storage import UNPACKED, held_bytes, stored_bytes
from quantkit.forecasting.timing import flops_per_token
from quantkit.spec import DENSE_BITS


@dataclass(frozen=True, slots=True)
class Moment:
    """What lives at one moment of a run: name → bytes."""

    name: str
    items: Mapping[str, int]

    @property
    def size_bytes(self) -> int:
        """Return the sum."""
        return sum(self.items.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"name": self.name, "items": dict(self.items), "size_bytes": self.size_bytes}


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
        return max(self.moments, key=lambda moment: moment.size_bytes)

    def moment(self, name: str) -> Moment:
        """Return a moment by its name."""
        return next(moment for moment in self.moments if moment.name == name)

    @property
    def training(self) -> Moment:
        """Return the largest moment of a training step."""
        return max((moment for moment in self.moments if moment.name in STEP), key=lambda moment: moment.size_bytes)

    def total(self, moment: Moment) -> int:
        """Return a moment's bytes with libraries, context and what allocators hold beyond: resident, or taken of a GPU."""
        return self.beyond + moment.size_bytes + round(self.slack * moment.size_bytes)

    @property
    def slack(self) -> float:
        """Return the share that the device's allocator holds beyond what is allocated."""
        return self.constants.cpu_slack if self.settings.device == "cpu" else self.constants.cuda_slack

    @property
    def beyond(self) -> int:
        """Return the bytes of libraries or of a GPU's context."""
        return self.constants.process_bytes if self.settings.device == "cpu" else self.constants.cuda_context_bytes

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
            "host_bytes": self.host_bytes,
            "disk_bytes": self.disk_bytes,
            "notes": list(self.notes),
        }


STEP = ("start", "loss", "backward", "step")
"""The moments of training: before its first step, and in each."""


def forecast_run(shape: ModelShape, settings: RunSettings, constants: Constants = CONSTANTS) -> Forecast:
    """Return the forecast of a run on one device, or of each GPU's share where there are several.

    Raises:
        UsageError: the adapter's targets match no layer.
    """
    size = adapter_size(shape, settings.adapter)
    kept = activations(shape, settings, size)
    loaded, weights, adapters = _loaded(shape, settings), held_weights(shape, settings), _adapters(settings, size)
    states = optimizer_states(settings.optim)
    state_bytes = states.size(size.trained, settings.trained_bytes)
    on_device = 0 if states.paged and settings.device != "cpu" else state_bytes
    gradients = size.trained * settings.trained_bytes
    notes = [] if states.known else [f"optim {settings.optim} is not known here; its states are counted as AdamW's"]
    always = weights | adapters | {"optimizer states": on_device, **_workspace(settings, constants)}
    moments = [
        Moment("load", loaded | _reading(shape, settings)),
        Moment("start", loaded | adapters | _casting(shape, settings)),
        Moment("loss", always | _before(settings, gradients) | _held(kept, settings, shape) | {"logits and loss": kept.logits}),
        Moment("backward", always | _backward(kept, settings, shape, gradients)),
        Moment("step", always | {"gradients": gradients, "optimizer's working memory": _step_work(settings, size)}),
    ]
    if settings.merges:
        moments.append(Moment("merge", _merging(shape)))
        moments.append(Moment("save", _saving(shape, settings)))
    found, devices = _per_device(moments, shape, settings, weights)
    offloaded = kept.kept(settings.with_changes(offload=False), shape.blocks) if settings.offload else 0
    return Forecast(
        shape=shape,
        settings=settings,
        constants=constants,
        moments=tuple(found),
        trained_parameters=size.trained,
        host_bytes=0 if settings.device == "cpu" else _host(settings, loaded, offloaded, state_bytes if states.paged else 0),
        disk_bytes=_disk(shape, settings, size) + 4 * size.trained + state_bytes,
        notes=tuple(notes),
        devices=devices,
    )


def _per_device(
    moments: list[Moment], shape: ModelShape, settings: RunSettings, weights: Mapping[str, int]
) -> tuple[list[Moment], tuple[Mapping[str, Any], ...]]:
    """Return the moments on the fullest of the devices, and the peak of a step on each of them."""
    if settings.strategy == "single":
        return moments, ()
    if settings.strategy == "fsdp" and settings.device != "cpu":  # each process loads the whole base on the CPU
        moments = [Moment(item.name, {}) if item.name in ("load", "start") else item for item in moments]
    mapped = ("load", *STEP) if settings.strategy == "device_map" else STEP[1:]
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


def held_weights(shape: ModelShape, settings: RunSettings) -> dict[str, int]:
    """Return what the base takes while it is trained on: quantized or dense layers, and all that no method quantizes."""
    if settings.adapter.kind == "NoPeft":
        return {"weights, all of them trained": shape.parameters * settings.trained_bytes}
    return _frozen(shape, settings, settings.held_dtype(shape.dtype))


def _frozen(shape: ModelShape, settings: RunSettings, held: str) -> dict[str, int]:
    spec = settings.plan.spec
    layers = sum(held_bytes(spec, layer, held=held) for layer in shape.linears)
    unpacked = spec.is_quantized and spec.format in UNPACKED
    name = f"{spec.weights_dtype} weights" + (f", unpacked to {held}" if unpacked else "") if spec.is_quantized else "weights"
    return {name: layers, "embeddings, head, norms": shape.dense_parameters * DENSE_BITS[settings.dense or held] // 8}


def _host(settings: RunSettings, loaded: Mapping[str, int], offloaded: int, paged: int) -> int:
    """Return what lies on the CPU beside GPUs: each process of FSDP2 loads the whole base there, later it is split."""
    whole = settings.processes * sum(loaded.values()) if settings.strategy == "fsdp" else 0
    return max(whole, offloaded + paged)


def _adapters(settings: RunSettings, size: AdapterSize) -> dict[str, int]:
    if settings.adapter.kind == "NoPeft":
        return {}
    return {"adapters": size.trained * settings.trained_bytes + size.frozen * 4}


def _workspace(settings: RunSettings, constants: Constants) -> dict[str, int]:
    return {} if settings.device == "cpu" else {"matrix products' workspace": constants.workspace_bytes}


def _before(settings: RunSettings, gradients: int) -> dict[str, int]:
    """Return the gradients that live during a forward pass: those of the passes before it in the same step."""
    return {"gradients": gradients} if settings.accumulation > 1 else {}


def _held(kept: Activations, settings: RunSettings, shape: ModelShape) -> dict[str, int]:
    return {"activations": kept.kept(settings, shape.blocks) + kept.last + kept.weight_copies}


def _backward(kept: Activations, settings: RunSettings, shape: ModelShape, gradients: int) -> dict[str, int]:
    """Return the larger of the beginning of a backward pass and its end, when all gradients are there."""
    work = {
        "activations computed again": kept.again(settings),
        "gradients of activations": kept.backward,
        "dequantized weight": kept.dequantized,
    }
    begin = _held(kept, settings, shape) | work | _before(settings, gradients)
    end = {"activations": kept.kept(settings, 1)} | work | {"gradients": gradients}
    return max(begin, end, key=lambda items: sum(items.values()))


def _step_work(settings: RunSettings, size: AdapterSize) -> int:
    """Return what AdamW makes on the way: on a GPU it works on all tensors at once, unless it is fused or in 8 bits."""
    plain = settings.optim == "adamw_torch" and settings.device != "cpu"
    return size.trained * settings.trained_bytes if plain else 0


def _loaded(shape: ModelShape, settings: RunSettings) -> dict[str, int]:
    """Return the weights as they come into memory: in the plan's compute data type, quantized on the way where they are."""
    loaded = settings.plan.compute_dtype
    if settings.adapter.kind == "NoPeft":
        return {"weights": shape.parameters * DENSE_BITS[loaded] // 8}
    return _frozen(shape, settings, loaded)


def _reading(shape: ModelShape, settings: RunSettings) -> dict[str, int]:
    """Return what reading a tensor takes beside its place: on a GPU nothing, unless it is quantized there."""
    stored = DENSE_BITS.get(shape.dtype, 32) // 8
    if settings.device == "cpu":
        return {"the tensor being read": max(shape.largest, shape.embeddings) * stored}
    quantized = settings.plan.spec.is_quantized and settings.plan.spec.format not in UNPACKED
    return {"the layer being quantized": max(layer.weights for layer in shape.linears) * stored} if quantized else {}


def _casting(shape: ModelShape, settings: RunSettings) -> dict[str, int]:
    """Return the copy of the largest tensor that is made where training holds weights in another data type than loading."""
    whole = settings.adapter.kind == "NoPeft"
    held = settings.trained_dtype if whole else settings.held_dtype(shape.dtype)
    if held == settings.plan.compute_dtype:
        return {}
    return {"the tensor being cast": max(shape.largest, shape.embeddings) * DENSE_BITS[held] // 8}


def _merging(shape: ModelShape) -> dict[str, int]:
    return {"the folded model in float32": 4 * shape.parameters, "the layer being folded": 3 * 4 * shape.largest}


def _saving(shape: ModelShape, settings: RunSettings) -> dict[str, int]:
    wide = DENSE_BITS[settings.save_dtype] // 8
    return {"the model to be saved": wide * shape.parameters, "the same, loaded again to compare": wide * shape.parameters}


def _disk(shape: ModelShape, settings: RunSettings, size: AdapterSize) -> int:
    if settings.merges or settings.adapter.kind == "NoPeft":
        return DENSE_BITS[settings.save_dtype] // 8 * shape.parameters
    return 4 * (size.trained + size.frozen)


def artifact_bytes(shape: ModelShape, settings: RunSettings) -> int:
    """Return the bytes of the quantized model of a method as its checkpoint holds it, embeddings and head in 16 bits."""
    spec = settings.plan.spec
    wide = DENSE_BITS[settings.save_dtype] // 8
    head = DENSE_BITS.get(spec.lm_head_dtype, 16) // 8
    dense = shape.dense_parameters * wide + (0 if shape.head is None or shape.tied else shape.head.weights * (head - wide))
    return sum(stored_bytes(spec, layer, dense=settings.save_dtype) for layer in shape.linears) + dense
