"""Which settings does a run have, and which values may they take? One flat dataclass, checked when it is built.

The constants of a script, the flags of `quantkit train` and the keys of a file are three spellings of these fields;
`quantkit.aliases` maps the names people already type onto them. The alternative, a parser per source, lets the three drift
apart and lets a misspelt key pass unread. A `RunConfig` that exists is valid.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self

from quantkit.aliases import resolve, script_settings
from quantkit.errors import UsageError, did_you_mean
from quantkit.options import check_value
from quantkit.plan import AdapterPlan, AdapterStart, PeftKind
from quantkit.ranges import RANGES
from quantkit.recompute import AUTO, checked_recompute
from quantkit.spellings import loosened

DtypeName = Literal["bfloat16", "float16", "float32"]
MergePolicy = Literal["dequantized", "base", "requantized"]
Scheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
]

WITHOUT_EFFECT_ON_WEIGHTS = frozenset(
    {"output_dir", "overwrite", "logging_steps", "save_steps", "save_total_limit", "resume_from_checkpoint", "report_to"}
    | {"preflight", "force"}
    | {"name_settings", "accept_changes", "dataloader_num_workers", "sharding"}
)
"""Fields that two runs may differ in and still give the same weights; the fingerprint leaves them out."""
NOT_IN_NAMES = WITHOUT_EFFECT_ON_WEIGHTS | {"method_options", "trust_remote_code", "device", "device_map", "revision"}
"""Fields that `name_settings` cannot list."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of one run: which model, which data, which method and adapter, how to train, what to save.

    Raises:
        UsageError: a value has the wrong type or is out of range; the text names field, value and what is wanted.
    """

    model_name_or_path: str
    """The base model: a folder or a hub id."""
    revision: str | None = None
    """Commit, tag or branch of a hub id; None: its default branch."""
    trust_remote_code: bool = False
    """Run Python code that the model repository brings along."""
    dataset_name: str | None = None
    """Training rows: a built-in name, a file, a folder or a hub id; None saves a snapshot of the base, untrained."""
    eval_dataset_name: str | None = None
    """Held-out rows whose loss is measured before and after training, at most a tenth as many as are trained on; None: none."""
    system_prompt: str | None = None
    """System turn put before every row; None: the built-in data set's own, else none."""
    trunc_train: int | None = None
    """Train on the first N rows only; None: on all."""
    max_length: int = 1024
    """Longest row in tokens; longer ones are cut."""
    on_bad_rows: Literal["error", "drop"] = "error"
    """What to do about rows that teach nothing: stop, or drop and count them."""
    preflight: Literal["error", "warn"] = "error"
    """What errors do that `quantkit preflight` would find in the data: stop the run before it loads the model, or warn."""
    force: bool = False
    """Start although the forecast says that the memory will not suffice."""

    finetuning: Literal["SFT"] = "SFT"
    """Kind of training: SFT, supervised fine-tuning."""
    quant_method: str = "NoQuant"
    """Quantization method of the base; `quantkit methods` lists them."""
    method_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the method; on the command line and in files they stand flat beside the other settings."""
    calib_rows: int = 128
    """Rows of calibration text, cut from the training rows, for methods that quantize the base with it."""
    calib_length: int = 512
    """Tokens of a calibration row."""
    peft_config: PeftKind = "LoRa"
    """Adapter kind; NoPeft trains all weights."""
    lora_r: int | None = None
    """Rank of the adapters; None: recommended by model size."""
    lora_alpha: float | None = None
    """Numerator of the adapters' scale alpha/r; None: twice the rank."""
    lora_dropout: float = 0.0
    """Probability of dropping an adapter input while training."""
    use_rslora: bool = False
    """Scale adapters by alpha/sqrt(r) instead of alpha/r (arXiv:2312.03732)."""
    init_lora_weights: AdapterStart = "default"
    """Where LoRA starts: default, at no change; loftq, at what quantization took from the base (arXiv:2310.08659); pissa, at
    the largest singular values of a dense base (arXiv:2404.02948)."""
    target_modules: tuple[str, ...] = ("all-linear",)
    """Layers with adapters: all-linear, attention, attention+mlp, name endings, or full names with wildcards."""
    modules_to_save: tuple[str, ...] = ()
    """Modules trained in full beside the adapters and saved with them."""

    learning_rate: float = 2e-4
    """Peak learning rate."""
    num_train_epochs: float = 1.0
    """Passes over the training rows."""
    max_steps: int = -1
    """Optimizer steps; -1: as many as num_train_epochs gives."""
    per_device_train_batch_size: int = 8
    """Rows of one forward pass; with packing, packs of rows of up to max_length tokens."""
    gradient_accumulation_steps: int = 1
    """Forward passes that make up one optimizer step."""
    lr_scheduler_type: Scheduler = "linear"
    """Course of the learning rate after warm-up."""
    warmup_steps: float = 0.0
    """Steps of rising learning rate; below 1: that share of all steps."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0: never."""
    optim: str | None = None
    """Optimizer, as transformers spells it (adamw_torch, paged_adamw_8bit, …); None: the method's choice."""
    recompute: str = AUTO
    """What the backward pass computes again instead of keeping it: none; selective, MLPs; full, whole decoder blocks; of the
    first so many blocks, full:12 or full:12,selective:8; auto, none where the run fits without, else the least that fits."""
    gradient_checkpointing: bool = False
    """The same as recompute full."""
    activation_offloading: bool = False
    """Keep what the backward pass needs in the CPU's memory instead of the GPU's: less GPU memory, more time."""
    fused_adapters: bool = True
    """Compute adapters in place, with a backward pass of their own: less time and memory, the same results."""
    group_by_length: bool = False
    """Put rows of similar length into one batch: less padding."""
    padding_free: bool = True
    """Put the rows of a batch into one sequence without padding; each still sees itself only."""
    prefix_sharing: bool = True
    """Compute tokens that rows of a batch begin with (a system prompt) once per batch; needs padding_free."""
    packing: bool = False
    """Pack whole rows into up to max_length tokens, so that batches are of equal size; rows still see themselves only."""
    loss_positions: Literal["supervised", "all"] = "supervised"
    """Positions the output head scores: those the loss is taken on, or, for comparison, all; the loss is the same."""
    seed: int = 42
    """Seed of adapter initialisation, row order and dropout."""

    logging_steps: int = 10
    """Optimizer steps between two reported losses."""
    save_steps: int = 0
    """Optimizer steps between two checkpoints; 0: only when interrupted."""
    save_total_limit: int = 2
    """Checkpoints kept; older ones are removed."""
    resume_from_checkpoint: bool | str = False
    """Go on from a checkpoint: true, the newest good one of this run; or its folder."""
    report_to: tuple[str, ...] = ()
    """Trackers: tensorboard, wandb, …; none by default."""
    accept_changes: tuple[str, ...] = ()
    """What a resumed run may do otherwise than its checkpoint's: names of settings and libraries, data, chat_template, base."""
    dataloader_num_workers: int = 0
    """Processes that put batches together ahead of time; 0: none. The batches are the same."""

    merge_after_train: bool = True
    """Fold the adapters into the weights and save a full model; false keeps the adapter."""
    merge: MergePolicy = "dequantized"
    """Fold them into the dequantized base they were trained on; into the original 16-bit base; or, requantized, into the
    dequantized one and quantize the result again with the method's own options."""
    save_dtype: DtypeName = "bfloat16"
    """Data type of dense weights that are saved."""
    lm_head_dtype: DtypeName | None = None
    """Data type of the saved output head; None: save_dtype."""
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Data type of arithmetic; auto: bfloat16 (else float16) on CUDA, float32 on a CPU without AMX, where training measures
    whether bfloat16 is faster for its matrix products."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …"""
    device_map: Mapping[str, int | str] | str | None = None
    """Spread a 16-bit base over the GPUs of one process: auto, balanced, balanced_low_0, sequential, or module → device."""
    sharding: Literal["none", "fsdp2"] = "none"
    """What each of several processes holds of the base: a copy, or, with fsdp2, a part; of NoPeft, of all that is trained."""
    output_dir: str = "artifacts"
    """Folder under which the artifact is saved by its standardized name; artifacts is $QUANTKIT_REGISTRY where that is set."""
    overwrite: bool = False
    """Replace an artifact of the same name."""
    name_settings: tuple[str, ...] = ()
    """Further settings that the artifact's name carries, for runs that differ in nothing else it says: seed, …"""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = loosened(item.name, getattr(self, item.name))
            object.__setattr__(self, item.name, check_value(type(self), item.name, value, where="settings"))
        object.__setattr__(self, "method_options", dict(self.method_options))
        if isinstance(self.device_map, Mapping):
            object.__setattr__(self, "device_map", dict(self.device_map))
        for name, (holds, wanted) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise UsageError(f"settings: {name} is {value!r}; it must be {wanted}")
        if self.packing and not self.padding_free:
            raise UsageError("settings: packing is on and padding_free is off; packed rows have no padding, so turn both on")
        if self.accept_changes and not self.resume_from_checkpoint:
            raise UsageError(
                "settings: accept_changes is set and resume_from_checkpoint is off; it says what a resumed run may do otherwise"
            )
        object.__setattr__(self, "recompute", checked_recompute(self.recompute))
        if self.gradient_checkpointing and self.recompute not in (AUTO, "none", "full"):
            raise UsageError(
                f"settings: recompute is {self.recompute} and gradient_checkpointing is on, which means full; leave out one"
            )
        nameable = [*(name for name in self.to_dict() if name not in NOT_IN_NAMES), *self.method_options]
        for name in self.name_settings:
            if name not in nameable:
                raise UsageError(
                    f"settings: name_settings has {name!r}; it must be a setting with an effect on the weights, or an option"
                    f" that is set.{did_you_mean(name, nameable)}"
                )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, where: str = "settings", methods: Any = None) -> Self:
        """Build a config from loose values under any name that `quantkit.aliases` knows.

        `methods` (default: the installed ones) tells which further keys are options of the chosen method.

        Raises:
            UsageError: a key is unknown, two keys contradict each other, or a value does not fit.
        """
        try:
            return cls(**resolve(values, SETTINGS, methods=methods))
        except UsageError as error:
            text = str(error).removeprefix("settings: ")
            raise type(error)(f"{where}: {text}") from None

    @classmethod
    def from_constants(cls, namespace: Mapping[str, Any], *, methods: Any = None) -> Self:
        """Build a config from the constants of a script: `RunConfig.from_constants(globals())`.

        Plain values under UPPER_CASE names are settings, unknown ones errors. Lower-case names count where they are
        settings; a lower-case plain value that looks like a misspelt setting is an error, others are the script's own.
        """
        script = str(namespace.get("__file__", "the script"))
        values = script_settings(namespace, SETTINGS, where=script, methods=methods)
        return cls.from_mapping(values, where=script, methods=methods)

    def with_changes(self, **changes: Any) -> Self:
        """Return a copy with these fields replaced."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `RunConfig(**data)` and `from_mapping(data)` give the same config back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @property
    def fingerprint(self) -> str:
        """Sha256 over the fields that have an effect on the weights, the same in every process."""
        data = {key: value for key, value in self.to_dict().items() if key not in WITHOUT_EFFECT_ON_WEIGHTS}
        return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def named(self) -> dict[str, Any]:
        """Return setting → value of what `name_settings` lists, as plain JSON data."""
        values = {**self.method_options, **self.to_dict()}
        return {name: values[name] for name in self.name_settings}

    def adapter_plan(self, recommended_r: int = 16) -> AdapterPlan:
        """Return the adapter asked for; `recommended_r` stands in for a rank that was left open."""
        r = self.lora_r or recommended_r
        return AdapterPlan(
            kind=self.peft_config,
            r=r,
            lora_alpha=2 * r if self.lora_alpha is None else self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=self.target_modules,
            modules_to_save=self.modules_to_save,
            use_rslora=self.use_rslora,
            init_lora_weights=self.init_lora_weights,
        )


SETTINGS = frozenset(item.name for item in fields(RunConfig))
