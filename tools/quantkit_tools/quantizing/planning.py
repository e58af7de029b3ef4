"""What will quantizing a model give, and what will it take? Known from configuration files, before weights are read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit import console
from quantkit.backends.vllm_rules import split_fusions
from quantkit.errors import QuantkitError, UsageError
from quantkit.gate import GateLimits, limits_for
from quantkit.layers import linear_layers
from quantkit.methods import Methods, require_usable
from quantkit.modeling import resolve_device
from quantkit.options import check_value
from quantkit.plan import AdapterPlan, PlanContext, QuantizationPlan, Stage
from quantkit.spec import DENSE_BITS, QuantizationSpec
from quantkit_registry.names import ArtifactName, format_name, parse_name
from quantkit_registry.store import Registry, default_root
from quantkit_registry.verify import named_settings
from quantkit_tools.opening import Opened, open_path
from quantkit_tools.quantizing.flags import QuantizeConfig
from quantkit_tools.sizes import Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeJob:
    """What will be quantized, how, and where to."""

    config: QuantizeConfig
    plan: QuantizationPlan
    source: Opened
    dtype: str
    """Data type of the source's dense weights, in which the result's dense weights are stored too."""
    name: str
    target: Path
    device: str
    limits: GateLimits
    size_bytes: int
    """Estimated size of the result's weights."""
    memory_bytes: int
    """Estimated peak: the source's weights, one block with its statistics, and its inputs."""
    time_s: float | None
    """Estimated from the newest artifact of the same method in the registry; None: none was measured."""

    @property
    def work(self) -> Path:
        """Folder of the finished blocks while the job runs."""
        return self.target.parent / ".quantizing" / self.name

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "name": self.name,
            "artifact": str(self.target),
            "exists": self.target.exists(),
            "source": self.source.name,
            "device": self.device,
            "recipe": self.plan.to_dict(),
            "size_bytes": self.size_bytes,
            "memory_bytes": self.memory_bytes,
            "time_s": self.time_s,
        }


def plan_quantization(config: QuantizeConfig, methods: Methods) -> QuantizeJob:
    """Decide recipe, name and target.

    Raises:
        UsageError: the source is not a dense model, the method cannot be used here, or settings contradict each other.
    """
    from quantkit.skeleton import read_skeleton

    device = resolve_device(config.device)
    require_usable(methods, [config.method], device.partition(":")[0])
    root = default_root() if config.dst is None else Path(config.dst).expanduser()
    trust = config.trust_remote_code
    registry = Registry(None if config.dst is None or not root.is_dir() else root)
    source = open_path(config.src, methods, registry=registry, device=device, trust_remote_code=trust)
    dtype = _dense_dtype(source)
    skeleton = read_skeleton(source.source.path, trust_remote_code=trust)
    context = PlanContext(
        stage=Stage.TRAINED,
        trains=False,
        adapter=AdapterPlan(kind="NoPeft"),
        device=device.partition(":")[0],
        compute_dtype=dtype,
        dense_dtype=dtype,
        lm_head_dtype="float16" if config.keep_lm_head_fp16 else None,
        model_config=skeleton.config.to_dict(),
    )
    plan = methods.plan(config.method, config.method_options, context)
    plan = plan.with_changes(notes=(*plan.notes, *split_fusions(*_parted(skeleton.model, config.ignore))))
    _require_wanted(config, plan)
    name = format_name(_name(source, config, plan.spec))
    root, target = (root.parent, root) if root.name == name else (root, root / name)
    bits = limits_for(plan.spec.weights_bits, methods.info(plan.method).gate_limits)
    sizes = Sizes.of(skeleton.model, plan.spec, config.ignore, DENSE_BITS[dtype] // 8)
    return QuantizeJob(
        config=config,
        plan=plan,
        source=source,
        dtype=dtype,
        name=name,
        target=target,
        device=device,
        limits=bits.with_changes(max_ppl_ratio=config.max_ppl_ratio, max_kl=config.max_kl, min_top1=config.min_top1),
        size_bytes=sizes.stored,
        memory_bytes=sizes.source
        + sizes.block
        + _input_bytes(config, skeleton.config, calibrates=methods.wants_calibration(plan)),
        time_s=_measured_time(Registry(root), plan, sizes.quantized, device),
    )


def announce(job: QuantizeJob) -> None:
    """Print what will be done and what it will take."""
    spec, config = job.plan.spec, job.config
    grid = [f"{spec.weights_dtype} in {spec.format}"]
    grid += (
        [] if spec.group_size is None else ["one scale per row" if spec.group_size == -1 else f"groups of {spec.group_size}"]
    )
    grid += [f"{spec.activations_bits}-bit activations"] if spec.activations_bits else []
    rows: list[tuple[str, object]] = [
        ("source", f"{job.source.name} ({job.dtype})"),
        ("method", f"{job.plan.method}: {', '.join(grid)}, head {spec.lm_head_dtype}"),
        ("calibration", config.calib or "by method"),
        ("stays dense", ", ".join(("output head", *config.ignore))),
        ("size", f"about {console.format_bytes(job.size_bytes)}"),
        ("memory", f"about {console.format_bytes(job.memory_bytes)} besides the libraries"),
        ("time", "unknown: not measured here yet" if job.time_s is None else f"about {console.format_duration(job.time_s)}"),
        ("as", str(job.target)),
    ]
    console.table("Plan", ["", ""], rows)
    for note in job.plan.notes:
        console.warn(note)


def _parted(model: Any, ignore: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return names of the layers that are quantized, and of those on the ignore list."""
    from quantkit.numerics.capture import matches

    names = list(linear_layers(model))
    left_out = [name for name in names if matches(name, ignore)]
    return [name for name in names if name not in left_out], left_out


def _dense_dtype(source: Opened) -> str:
    spec = source.source.spec
    if source.detection.kind == "adapter":
        raise UsageError(f"{source.name} is an adapter; fold it in first (merge_after_train), then quantize the merged model")
    if spec.is_quantized or spec.weights_dtype not in DENSE_BITS:
        raise UsageError(
            f"{source.name} holds {spec.weights_dtype} weights ({spec.format}); only dense 16- or 32-bit models are quantized"
        )
    return spec.weights_dtype


def _name(source: Opened, config: QuantizeConfig, recipe: QuantizationSpec) -> ArtifactName:
    if source.detection.record is not None:
        record = source.detection.record
        return parse_name(record.name).quantized(recipe, named_settings(record))
    return ArtifactName.of(base=config.src, dataset=None, adapter=AdapterPlan(kind="NoPeft"), recipe=recipe)


def _require_wanted(config: QuantizeConfig, plan: QuantizationPlan) -> None:
    for name, text in config.wanted.items():
        value = check_value(QuantizationSpec, name, text, where="flags")
        if value != getattr(plan.spec, name):
            raise UsageError(
                f"{name} {value} was asked for, but {plan.method} makes {getattr(plan.spec, name)} and has no such option"
            )


def _input_bytes(config: QuantizeConfig, model: Any, *, calibrates: bool) -> int:
    """Return the bytes of two streams of a block's inputs in float32."""
    width = int(getattr(model.get_text_config(), "hidden_size", 0))
    return 2 * 4 * config.calib_rows * config.calib_length * width if calibrates else 0


def _measured_time(registry: Registry, plan: QuantizationPlan, weights: int, device: str) -> float | None:
    """Return seconds by the rate of the newest artifact of this method that was made here in one go."""
    try:
        known = [item.record for item in registry.artifacts() if item.record is not None]
    except QuantkitError:
        return None
    for record in sorted(known, key=lambda item: item.created_at, reverse=True):
        made = record.verification.get("quantized")
        if record.recipe.method == plan.method and isinstance(made, dict) and not made.get("resumed_blocks"):
            rate = made.get("seconds_per_million_weights")
            if isinstance(rate, int | float) and record.environment.get("device") == device:
                return round(rate * weights / 1e6, 1)
    return None
