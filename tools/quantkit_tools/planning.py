"""What will a run do? Decided from settings and configuration files alone, within seconds, before any weights are read.

A setting that cannot work is an error here, not after the model has been loaded and the data tokenized.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quantkit.config import RunConfig
from quantkit.console import table
from quantkit.errors import UsageError
from quantkit.methods import Methods, require_usable
from quantkit.placement import check_placement, check_splitting
from quantkit.plan import PlanContext, QuantizationPlan
from quantkit.spec import DENSE_BITS, QuantizationSpec
from quantkit.starts import check_start
from quantkit.training.recompute import check_recompute
from quantkit_registry.names import ArtifactName, format_name
from quantkit_registry.records import Parent
from quantkit_registry.store import root_of
from quantkit_tools.plan_show import FASTER, tell_notes

MERGES = {
    "dequantized": "into the dequantized base that the adapter was trained on",
    "base": "into the original base, not the quantized one that the adapter was trained on",
    "requantized": "into the dequantized base, then quantized again by the same recipe",
}
"""What each merge policy does, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What a run will do, decided from configuration files alone, before weights are read."""

    config: RunConfig
    plan: QuantizationPlan
    stored: QuantizationSpec
    """What the saved artifact will hold; of a kept adapter: what its base holds."""
    kind: str
    """`model` or `adapter`."""
    name: str
    target: Path
    base: str
    """Hub id, or absolute path of a folder, so that the artifact can be used from anywhere on this machine."""
    device: str
    parameters: int
    """Parameters of the base."""
    base_dtype: str = "bfloat16"
    """Data type of the base's own weights."""
    model_config: Mapping[str, Any] = field(default_factory=dict)
    """The base's `config.json`."""
    quantizes_base: bool = False
    """Whether the method makes a quantized base of its own before anything is trained."""
    calibrates_base: bool = False
    """Whether it rounds that base on training rows."""
    parents: tuple[Parent, ...] = ()
    """The quantized base, once it is there."""

    @property
    def trains(self) -> bool:
        """Whether there is data to train on; else the base is saved as it is."""
        return self.config.dataset_name is not None

    @property
    def merges(self) -> bool:
        """Whether adapters are trained and folded in."""
        return self.kind == "model" and self.plan.adapter.kind != "NoPeft"

    @property
    def merge_policy(self) -> str:
        """How the adapters are folded in; on a dense base `base` and `dequantized` are the same."""
        return self.config.merge if self.plan.spec.is_quantized else "dequantized"

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints while it trains."""
        return self.target.parent / ".checkpoints" / self.name

    @property
    def revision(self) -> str | None:
        """Commit, tag or branch of the base; None for a folder."""
        return None if self.parents else self.config.revision

    def held_whole(self) -> "RunPlan":
        """Return the run as it is before and after training: where GPUs hold parts of the model, the CPU holds it whole."""
        return replace(self, device="cpu") if self.config.sharding == "fsdp2" else self

    def on_base(self, folder: str, parent: Parent) -> "RunPlan":
        """Return the run on a base that was quantized for it."""
        return replace(self, base=folder, parents=(parent,))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "name": self.name,
            "artifact": str(self.target),
            "exists": self.target.exists(),
            "kind": self.kind,
            "device": self.device,
            "parameters": self.parameters,
            "quantization": self.stored.to_dict(),
            "recipe": self.plan.to_dict(),
            "settings": self.config.to_dict(),
        }


def plan_run(config: RunConfig, methods: Methods) -> RunPlan:
    """Decide method, adapter, data types and name.

    Raises:
        UsageError: settings contradict each other, the method cannot be used here, layers to adapt do not exist, or the
            artifact exists and may not be replaced; a group size does not divide a layer's columns.
    """
    from quantkit.modeling import recommend_rank, resolve_compute_dtype, resolve_device, resolve_targets
    from quantkit.skeleton import is_local, read_skeleton
    from quantkit_tools.sizes import Sizes

    device = resolve_device(config.device)
    require_usable(methods, [config.quant_method], device.partition(":")[0])
    skeleton = read_skeleton(config.model_name_or_path, revision=config.revision, trust_remote_code=config.trust_remote_code)
    if config.dataset_name is None and config.peft_config != "NoPeft":
        config = config.with_changes(peft_config="NoPeft", use_rslora=False, init_lora_weights="default")
    trains = config.dataset_name is not None
    merges = trains and config.merge_after_train and config.peft_config != "NoPeft"
    keeps_adapter = trains and not merges and config.peft_config != "NoPeft"
    if keeps_adapter and config.lm_head_dtype is not None:
        raise UsageError(
            "lm_head_dtype is the data type of a saved model's head; merge_after_train is false, so only the adapter is saved."
            " Leave lm_head_dtype out, or merge"
        )
    base_dtype = str(skeleton.config.dtype).removeprefix("torch.")
    dense_dtype = base_dtype if keeps_adapter and base_dtype in DENSE_BITS else config.save_dtype
    context = PlanContext(
        trains=trains,
        adapter=config.adapter_plan(recommend_rank(skeleton.parameters)),
        device=device.partition(":")[0],
        compute_dtype=resolve_compute_dtype(config.compute_dtype, device) if trains else config.save_dtype,
        dense_dtype=dense_dtype,
        lm_head_dtype=config.lm_head_dtype,
        model_config=skeleton.config.to_dict(),
    )
    plan = methods.plan(config.quant_method, config.method_options, context)
    if plan.adapter.kind != config.peft_config:  # what really runs is what checkpoints, records and sweeps are to know
        config = config.with_changes(peft_config=plan.adapter.kind)
    original = context.model_config.get("quantization_config") is None
    check_placement(config, device, quantized=plan.spec.is_quantized or not original)
    check_splitting(config)
    check_recompute(skeleton.model, config)
    if plan.adapter.kind != "NoPeft":
        resolve_targets(skeleton.model, plan.adapter.target_modules)
    quantizes_base = trains and plan.spec.is_quantized and not methods.load_kwargs(plan)
    if quantizes_base and original:
        Sizes.of(skeleton.model, plan.spec, (), DENSE_BITS[dense_dtype] // 8)
    if trains and not merges and config.merge != "dequantized":
        raise UsageError(
            f"merge is {config.merge!r}, but no adapter is folded in: merge_after_train is {config.merge_after_train} and"
            f" peft_config {config.peft_config}"
        )
    if trains:
        check_start(
            plan.adapter,
            quantized=plan.spec.is_quantized,
            keeps_base=keeps_adapter or config.merge == "base",
            original=original,
        )
    requantizes = merges and config.merge == "requantized"
    if requantizes and not plan.spec.is_quantized:
        raise UsageError(
            f"merge is 'requantized', but {plan.method} trains on dense weights; there is nothing to quantize again"
        )
    dense = merges and not requantizes
    stored = QuantizationSpec.dense(config.save_dtype, lm_head_dtype=config.lm_head_dtype) if dense else plan.spec
    differs = dense and plan.spec.is_quantized
    name = format_name(
        ArtifactName.of(
            base=config.model_name_or_path,
            dataset=_dataset_tag(config),
            finetuning=config.finetuning,
            adapter=plan.adapter,
            recipe=plan.spec,
            merged_dtype=config.save_dtype if differs else None,
            merge_policy="base" if differs and config.merge == "base" else None,
            named=config.named if trains else None,
        )
    )
    return RunPlan(
        config=config,
        plan=plan,
        stored=stored,
        kind="adapter" if keeps_adapter else "model",
        name=name,
        target=root_of(config.output_dir) / name,
        base=str(Path(config.model_name_or_path).expanduser().resolve())
        if is_local(config.model_name_or_path)
        else config.model_name_or_path,
        device=device,
        parameters=skeleton.parameters,
        base_dtype=base_dtype if base_dtype in DENSE_BITS else config.save_dtype,
        model_config=skeleton.config.to_dict(),
        quantizes_base=quantizes_base,
        calibrates_base=quantizes_base and methods.wants_calibration(plan),
    )


def _dataset_tag(config: RunConfig) -> str | None:
    if config.dataset_name is None:
        return None
    from quantkit.data.sources import parse_dataset

    return parse_dataset(config.dataset_name).tag


def announce(run: RunPlan) -> None:
    """Print what will be done."""
    config, plan = run.config, run.plan
    rows: list[tuple[str, object]] = [
        ("base", f"{config.model_name_or_path} ({run.parameters / 1e6:,.1f} M parameters)"),
        ("method", f"{plan.method}: {_spec_text(plan.spec)}"),
        *(
            [("base", f"is quantized first, as an artifact of its own{', calibrated on training rows' * run.calibrates_base}")]
            if run.quantizes_base
            else []
        ),
        ("adapter", _adapter_text(run)),
        ("data", config.dataset_name or "none: a snapshot of the base"),
        ("computes in", f"{plan.compute_dtype} on {run.device}{_training_dtype(run)}"),
        (
            "saves",
            f"{run.kind}: {_spec_text(run.stored)}" if run.kind == "model" else "the adapter, with the recipe of its base",
        ),
        *([("merges", MERGES[run.merge_policy])] if run.merges and run.plan.spec.is_quantized else []),
        ("as", str(run.target)),
    ]
    table("Plan", ["", ""], rows)
    tell_notes(plan, run.model_config, dense=run.merges and not run.stored.is_quantized)


def _training_dtype(run: RunPlan) -> str:
    """Return what the plan cannot know yet: `quantkit.training.precision` times both when training begins."""
    timed = run.device == "cpu" and run.config.compute_dtype == "auto" and run.config.dataset_name
    return f"; training in {FASTER}" if timed else ""


def _spec_text(spec: QuantizationSpec) -> str:
    parts = [f"{spec.weights_dtype} weights ({spec.weights_bits} bit)"]
    parts += [f"group size {spec.group_size}"] if spec.group_size else []
    parts += ["double quantization"] if spec.double_quant else []
    parts += [f"{spec.activations_bits}-bit activations"] if spec.activations_bits else []
    return ", ".join([*parts, f"head {spec.lm_head_dtype}"])


def _adapter_text(run: RunPlan) -> str:
    adapter = run.plan.adapter
    if adapter.kind == "NoPeft":
        return "none: all weights are trained" if run.config.dataset_name else "none"
    scale = "" if adapter.kind == "VeRa" else f", alpha {adapter.lora_alpha:g}"
    start = "" if adapter.init_lora_weights == "default" else f", started by {adapter.init_lora_weights}"
    return f"{adapter.label}{scale} on {', '.join(adapter.target_modules)}{start}"
